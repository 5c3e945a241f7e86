"""Which stretch of a flat sequence of tokens belongs to which adapters, for as long as a pass lasts.

Projections that read the same input are a family: the first that is asked computes for all, and what it found for the
others is kept here until they ask. Shape suffixes: N tokens of all stretches, S tokens of one, I features in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from student.bank_adapter import BankAdapter, Joint
from student.bank_lines import Lines
from student.padded import Padded
from tutelage.models.quantised import frozen_weight


@dataclass(frozen=True, eq=False)
class Family:
    """Projections of the base that read the same input, computed together."""

    key: str
    layers: dict[str, nn.Module]
    """By the projection's name."""

    def backward(self, gs_NO: dict[str, torch.Tensor]) -> torch.Tensor:
        """[N, I], the derivative by what the base's layers read, from those by what each gave."""
        dx_NI: torch.Tensor | None = None
        for name, g_NO in gs_NO.items():
            layer, dtype = self.layers[name], g_NO.dtype
            # Without a name for the weight, which would be held while the next layer's is unpacked.
            if dx_NI is None:
                dx_NI = g_NO @ frozen_weight(layer, dtype)
            else:
                dx_NI.addmm_(g_NO, frozen_weight(layer, dtype))
        assert dx_NI is not None
        return dx_NI


@dataclass(frozen=True)
class Stretch:
    """Tokens [start, stop) of the flat sequence and the adapters that act on them, in this order."""

    start: int
    stop: int
    adapters: tuple[BankAdapter, ...]


@dataclass
class Routing:
    """What the projections look up in one pass."""

    stretches: tuple[Stretch, ...] = ()
    """They cover all tokens, in their order."""
    anchor: torch.Tensor | None = None
    """Requires a gradient, so that autograd reaches adapters it does not know of."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _places: dict[tuple[int, ...], Padded] = field(default_factory=dict)
    _ahead: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None
    _met: dict[str, list[tuple[int, list[tuple[BankAdapter, Joint]]]]] = field(default_factory=dict)
    _lines: dict[str, Lines] = field(default_factory=dict)

    def keep_ahead(self, x: torch.Tensor, outputs: dict[str, torch.Tensor]) -> None:
        """What the rest of a family gives for x, until they are asked."""
        # Without its history, which leads back to here: such a ring is never given free.
        self._ahead = (x.detach(), outputs) if outputs else None

    def computed_ahead(self, x: torch.Tensor, name: str) -> torch.Tensor | None:
        """What was kept for this projection and no other input."""
        if self._ahead is None or not _same(self._ahead[0], x):
            return None
        output = self._ahead[1].pop(name, None)
        if not self._ahead[1]:
            self._ahead = None
        return output

    def forget(self) -> None:
        """Lets go of what nobody asked for."""
        self._ahead = None

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each stretch."""
        return [stretch.stop - stretch.start for stretch in self.stretches]

    def places(self, stretches: tuple[int, ...]) -> Padded:
        """Where the tokens of these stretches, by their numbers, stand in a batch."""
        if stretches not in self._places:
            spans = [(self.stretches[i].start, self.stretches[i].stop) for i in stretches]
            self._places[stretches] = Padded.of(spans, self.stretches[-1].stop, self.device)
        return self._places[stretches]

    def met(self, family: Family) -> list[tuple[int, list[tuple[BankAdapter, Joint]]]]:
        """The stretches, by their number, in which an adapter has a part in the family, and those parts."""
        if family.key in self._met:
            return self._met[family.key]
        found = self._met[family.key] = []
        for i, stretch in enumerate(self.stretches):
            joints = [
                (adapter, adapter.families[family.key])
                for adapter in stretch.adapters
                if family.key in adapter.families
            ]
            if joints:
                found.append((i, joints))
        return found

    def lines(self, family: Family) -> Lines:
        """Where what `met` tells of lies; on a CPU."""
        if family.key not in self._lines:
            met = [(self.stretches[i].start, self.stretches[i].stop, joints) for i, joints in self.met(family)]
            self._lines[family.key] = Lines.of(met, tuple(family.layers))
        return self._lines[family.key]

    @cached_property
    def families(self) -> frozenset[str]:
        """All in which an adapter has a part."""
        return frozenset(
            family for stretch in self.stretches for adapter in stretch.adapters for family in adapter.families
        )


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
