"""One LoRA adapter of the bank as one flat vector, and the projections that it may act on.

An A and a B for each projection lie in one float32 vector, so that clipping and AdamW are one call an adapter. The A of
projections that read the same input (queries, keys and values; gate and up) lie next to each other: one product serves
them all. Shape suffixes: I and O features in and out, R rank, J the ranks of a family's members, one after the other,
P all values of an adapter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from student.lora import LoraWeights
from tutelage.domain.errors import InvalidInput

READ_THE_SAME = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections of one module that are given one tensor, by their names in transformers."""


@dataclass(frozen=True)
class Projection:
    """A linear layer of the base that can carry LoRA."""

    name: str
    in_features: int
    out_features: int

    @property
    def family(self) -> str:
        """The same for all projections that read the same input."""
        parent, _, child = self.name.rpartition(".")
        first = next((names[0] for names in READ_THE_SAME if child in names), child)
        # A family has one matrix of A, so its members are of one width.
        return f"{parent}.{first}/{self.in_features}"


class Member(NamedTuple):
    """An adapter's part in one projection."""

    at: int
    """Where its ranks begin in J."""
    b_RO: torch.Tensor
    """Transposed, because it is then read in long rows, and its gradient written in them."""
    db_RO: torch.Tensor | None


@dataclass(frozen=True)
class Joint:
    """An adapter's part in a family of projections; the gradients are None where it does not train."""

    a_JI: torch.Tensor
    da_JI: torch.Tensor | None
    members: dict[str, Member]
    """By the projection's name."""
    _told: dict[tuple[str, ...], tuple[int, ...]] = field(default_factory=dict)

    def told(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """From RANKS on what a line of bank_products tells, of a family of projections of these names."""
        if names not in self._told:
            # An adapter's values stay where they are, and each pass asks.
            line = [len(self.a_JI), *_addresses(self.a_JI, self.da_JI)]
            for name in names:
                member = self.members.get(name)
                line += (-1, 0, 0) if member is None else (member.at, *_addresses(member.b_RO, member.db_RO))
            self._told[names] = tuple(line)
        return self._told[names]


def _addresses(values: torch.Tensor, gradient: torch.Tensor | None) -> tuple[int, int]:
    return values.data_ptr(), 0 if gradient is None else gradient.data_ptr()


class BankAdapter:
    """One LoRA adapter in a flat vector `values_P`; with `trainable`, `grad_P` collects its gradient."""

    def __init__(
        self, projections: Sequence[Projection], rank: int, scaling: float, device: torch.device, *, trainable: bool
    ) -> None:
        self.projections, self.rank, self.scaling = tuple(projections), rank, scaling
        size = sum(rank * (p.in_features + p.out_features) for p in projections)
        self.values_P = torch.zeros(size, device=device)
        self.grad_P = torch.zeros(size, device=device) if trainable else None
        self.families = self._families()
        self._written: set[str] = set()

    def beta(self, family: str) -> int:
        """By what the family's gradient is multiplied before a product is added: 0 once a step, then 1.

        So no step begins by writing zeros over all of it, and none reads them.
        """
        if family in self._written:
            return 1
        self._written.add(family)
        return 0

    def complete_gradient(self) -> None:
        """Zeros where no token has met a projection since the gradient was forgotten."""
        for family in self.families.keys() - self._written:
            joint = self.families[family]
            for gradient in (joint.da_JI, *(member.db_RO for member in joint.members.values())):
                if gradient is not None:
                    gradient.zero_()

    def forget_gradient(self) -> None:
        """The next one is written anew."""
        self._written.clear()

    def _families(self) -> dict[str, Joint]:
        members: dict[str, list[Projection]] = {}
        for projection in self.projections:
            members.setdefault(projection.family, []).append(projection)
        found, at = {}, 0
        for family, projections in members.items():
            width = projections[0].in_features
            sizes = [self.rank * width * len(projections), *(self.rank * p.out_features for p in projections)]
            values = self.values_P[at : at + sum(sizes)].split(sizes)
            gradients: Sequence[torch.Tensor | None] = [None] * len(sizes)
            if self.grad_P is not None:
                gradients = self.grad_P[at : at + sum(sizes)].split(sizes)
            at += sum(sizes)
            a_JI, first = values[0].view(-1, width), gradients[0]
            parts = {}
            for place, (p, b, db) in enumerate(zip(projections, values[1:], gradients[1:], strict=True)):
                b_RO, db_RO = b.view(self.rank, -1), None if db is None else db.view(self.rank, -1)
                parts[p.name] = Member(place * self.rank, b_RO, db_RO)
            found[family] = Joint(a_JI, None if first is None else first.view(-1, width), parts)
        return found

    def factors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A [R, I], B transposed [R, O]) by projection, in their order: views of the flat vector."""
        found = {
            name: (a_RI, member.b_RO)
            for joint in self.families.values()
            for (name, member), a_RI in zip(joint.members.items(), joint.a_JI.split(self.rank), strict=True)
        }
        return {projection.name: found[projection.name] for projection in self.projections}

    def initialise(self, seed: int) -> None:
        """PEFT's start: A uniform after Kaiming with a = sqrt(5), B zero."""
        # An own generator on the CPU: the same start on every device, and no state shared between adapters.
        generator = torch.Generator().manual_seed(seed)
        for a_RI, b_RO in self.factors().values():
            start_RI = torch.empty(a_RI.shape)
            nn.init.kaiming_uniform_(start_RI, a=5**0.5, generator=generator)
            a_RI.copy_(start_RI)
            b_RO.zero_()

    def freeze(self) -> None:
        """Gives up the gradient."""
        self.grad_P = None
        self.families = self._families()

    def weights(self) -> LoraWeights:
        """A copy on the CPU, scaling folded in."""
        return LoraWeights(
            {
                name: (a_RI.detach().cpu().clone(), (b_RO.detach().cpu() * self.scaling).T.contiguous())
                for name, (a_RI, b_RO) in self.factors().items()
            }
        )

    @classmethod
    def frozen(cls, weights: LoraWeights, device: torch.device) -> BankAdapter:
        """A committed version, as it acts and without a gradient."""
        projections = [Projection(name, a.shape[1], b.shape[0]) for name, (a, b) in weights.modules.items()]
        adapter = cls(projections, weights.rank, 1.0, device, trainable=False)
        for name, (a_RI, b_RO) in adapter.factors().items():
            a_RI.copy_(weights.modules[name][0])
            b_RO.copy_(weights.modules[name][1].T)
        return adapter


def layer_of(name: str) -> int:
    """The number of the decoder layer that a module of this name is part of; a large one where it is part of none."""
    found = re.search(r"\blayers\.(\d+)\.", name)
    return int(found.group(1)) if found else 2**31


def targeted(
    projections: Sequence[Projection], target_modules: Sequence[str], first_layer: int = 0
) -> list[Projection]:
    """Those that carry LoRA: the ones named, by their last part or in full, or all when none is named.

    Of decoder layers only those from `first_layer` on. Raises InvalidInput when a name matches no projection.
    """
    projections = [p for p in projections if layer_of(p.name) >= first_layer]

    def named(projection: Projection, target: str) -> bool:
        return projection.name == target or projection.name.endswith("." + target)

    for target in target_modules:
        if not any(named(projection, target) for projection in projections):
            short_names = sorted({projection.name.rsplit(".", 1)[-1] for projection in projections})
            raise InvalidInput.of("settings.target_modules", target, ", ".join(short_names))
    if not target_modules:
        return list(projections)
    return [p for p in projections if any(named(p, target) for target in target_modules)]
