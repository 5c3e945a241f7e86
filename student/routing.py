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
from student.padded import Padded
from tutelage.models.quantised import frozen_weight

MOST_VIEWS = 1024
"""Views of a scratch that are kept, of all shapes seen."""


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


class Scratch:
    """Room for a stretch in float32, used again and again: what lies there stays in the cache, and no page is new."""

    def __init__(self) -> None:
        self._rooms: dict[str, torch.Tensor] = {}
        self._views: dict[tuple[str, torch.Size], torch.Tensor] = {}

    def room(self, place: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """A tensor of any values, that lasts until the place is used again."""
        view = self._views.get((place, shape))
        if view is None:
            values = shape.numel()
            whole = self._rooms.get(place)
            # One made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                if whole is None or whole.numel() < values:
                    whole = self._rooms[place] = torch.empty(values, device=device)
                    self._views.clear()
                if len(self._views) == MOST_VIEWS:
                    self._views.clear()
                view = self._views[place, shape] = whole[:values].view(shape)
        return view

    def floats(self, place: str, values: torch.Tensor) -> torch.Tensor:
        """The values in float32: themselves if they are, else a copy that lasts until the place is used again."""
        if values.dtype == torch.float32:
            return values
        return self.room(place, values.shape, values.device).copy_(values)


@dataclass
class Routing:
    """What the projections look up in one pass."""

    stretches: tuple[Stretch, ...] = ()
    """They cover all tokens, in their order."""
    anchor: torch.Tensor | None = None
    """Requires a gradient, so that autograd reaches adapters it does not know of."""
    scratch: Scratch = field(default_factory=Scratch)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _places: dict[tuple[int, ...], Padded] = field(default_factory=dict)
    _ahead: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None
    _met: dict[str, list[tuple[int, list[tuple[BankAdapter, Joint]]]]] = field(default_factory=dict)

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

    @cached_property
    def families(self) -> frozenset[str]:
        """All in which an adapter has a part."""
        return frozenset(
            family for stretch in self.stretches for adapter in stretch.adapters for family in adapter.families
        )


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype
