"""A family of projections with the adapters of all stretches at once, as batched products: the way of GPUs.

Adapters of one rank that act on stretches of about one length are stacked, and their tokens padded to the longest:
the number of kernels does not grow with the number of adapters. LoRA computes in float32, which grouped products of
torch do not take, so batched ones are the only way here. Shape suffixes: N tokens of all stretches, G adapters of a
batch, S places of the longest of their stretches, I and O features in and out, R rank, J the ranks of a family's
members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from student.bank_adapter import BankAdapter, Joint, Member
from student.padded import Padded, length_class
from student.routing import Family, Routing


@dataclass(frozen=True, eq=False)
class Batch:
    """Adapters of one shape in a family, and the places of their tokens."""

    places: Padded
    adapters: list[BankAdapter]
    joints: list[Joint]

    @property
    def trains(self) -> bool:
        return self.joints[0].da_JI is not None

    def a_GJI(self) -> torch.Tensor:
        return torch.stack([joint.a_JI for joint in self.joints])

    @property
    def scaling(self) -> float:
        return self.adapters[0].scaling

    @cached_property
    def members(self) -> dict[str, tuple[slice, list[Member]]]:
        """By the projection's name (its ranks in J, each adapter's part in it)."""
        return {
            name: (slice(first.at, first.at + len(first.b_RO)), [joint.members[name] for joint in self.joints])
            for name, first in self.joints[0].members.items()
        }


def batches(family: Family, routing: Routing) -> list[Batch]:
    """The adapters that have a part in the family, in as few batches as their shapes allow."""
    alike: dict[tuple[Any, ...], list[tuple[int, BankAdapter, Joint]]] = {}
    for i, joints in routing.met(family):
        for order, (adapter, joint) in enumerate(joints):
            # Nothing of a batch is sent to the device but the places of tokens: a scaling apiece would be.
            shape = (
                order, length_class(routing.sizes[i]), adapter.rank, adapter.scaling, tuple(joint.members),
                joint.da_JI is not None,
            )  # fmt: skip
            alike.setdefault(shape, []).append((i, adapter, joint))
    return [
        Batch(
            routing.places(tuple(i for i, _, _ in batch)),
            [adapter for _, adapter, _ in batch],
            [joint for _, _, joint in batch],
        )
        for batch in alike.values()
    ]


def _collect(gradients: Sequence[torch.Tensor], products_G: torch.Tensor, betas: Sequence[int]) -> None:
    """Each product replaces its adapter's gradient where beta is 0, and is added to it where it is 1."""
    new = [i for i, beta in enumerate(betas) if not beta]
    held = [i for i, beta in enumerate(betas) if beta]
    if new:
        torch._foreach_copy_([gradients[i] for i in new], [products_G[i] for i in new])
    if held:
        torch._foreach_add_([gradients[i] for i in held], [products_G[i] for i in held])


class Batched(torch.autograd.Function):
    """base(x) of each layer of a family, and scaling B A x of each stretch's adapters.

    Backward, the adapters' gradients are written. Sums of all tokens are held in float32 one at a time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor | None, family: Family, routing: Routing
    ) -> tuple[torch.Tensor, ...]:
        x_NI = x.flatten(0, -2)
        found = batches(family, routing)
        inner = [
            torch.bmm(batch.places.spread(x_NI).float(), batch.a_GJI().transpose(1, 2)).mul_(batch.scaling)
            for batch in found
        ]
        ys = {}
        for name, layer in family.layers.items():
            y = ys[name] = layer(x)
            acting = [(batch, h_GSJ) for batch, h_GSJ in zip(found, inner, strict=True) if name in batch.members]
            if not acting:
                continue
            y_NO = y.view(-1, y.shape[-1])
            sum_NO = y_NO.float()
            for batch, h_GSJ in acting:
                ranks, members = batch.members[name]
                batch.places.add_to(sum_NO, torch.bmm(h_GSJ[..., ranks], torch.stack([each.b_RO for each in members])))
            if sum_NO is not y_NO:
                y_NO.copy_(sum_NO)
        if anchor is not None:
            # All that is kept goes this way, so that a pass which is computed again keeps none of it.
            ctx.save_for_backward(x, *inner)
            ctx.family, ctx.batches = family, found
        return tuple(ys.values())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        x, *inner = ctx.saved_tensors
        family = ctx.family
        gs_NO = {name: gradient.flatten(0, -2) for name, gradient in zip(family.layers, gradients, strict=True)}
        dx_NI = family.backward(gs_NO) if ctx.needs_input_grad[0] else None
        sum_NI = dx_NI.float() if dx_NI is not None else None
        for batch, h_GSJ in zip(ctx.batches, inner, strict=True):
            betas = [adapter.beta(family.key) for adapter in batch.adapters]
            dh_GSJ = torch.empty_like(h_GSJ)
            for name, (ranks, members) in batch.members.items():
                g_GSO = batch.places.spread(gs_NO[name]).float()
                b_GRO = torch.stack([member.b_RO for member in members])
                dh_GSJ[..., ranks] = torch.bmm(g_GSO, b_GRO.transpose(1, 2))
                if batch.trains:
                    dbs_RO = [member.db_RO for member in members if member.db_RO is not None]
                    _collect(dbs_RO, torch.bmm(h_GSJ[..., ranks].transpose(1, 2), g_GSO), betas)
            dh_GSJ.mul_(batch.scaling)
            if batch.trains:
                x_GSI = batch.places.spread(x.flatten(0, -2)).float()
                das_JI = [joint.da_JI for joint in batch.joints if joint.da_JI is not None]
                _collect(das_JI, torch.bmm(dh_GSJ.transpose(1, 2), x_GSI), betas)
            if sum_NI is not None:
                batch.places.add_to(sum_NI, torch.bmm(dh_GSJ, batch.a_GJI()))
        if dx_NI is not None and sum_NI is not None and sum_NI is not dx_NI:
            dx_NI.copy_(sum_NI)
        return (dx_NI.view(x.shape) if dx_NI is not None else None), None, None, None
