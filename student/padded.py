"""Spans of a flat sequence as a batch of equal lengths, and back: what a GPU wants, where one product serves them all.

Places of a batch that no token fills hold zeros, whatever stands elsewhere: a span of NaN never reaches a neighbour.
Shape suffixes: N tokens of the flat sequence, G spans of the batch, S places of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

SHORTEST = 64
"""Places up to which spans are never kept apart by their length."""


def length_class(length: int) -> int:
    """Spans of one class differ in length by a factor of two at most, or are of `SHORTEST` places at most."""
    return max(length - 1, SHORTEST - 1).bit_length()


@dataclass(frozen=True, eq=False)
class Padded:
    """The places of some spans of a flat sequence."""

    tokens_GS: torch.Tensor
    """The token of each place, int64; 0 where there is none."""
    empty_GS: torch.Tensor | None
    """True where a place has no token; None where all have."""
    places_N: torch.Tensor
    """The place of each token, counted through all spans, int64; 0 where a token has none."""
    absent_N: torch.Tensor | None
    """True where a token has no place; None where all have."""
    filled: torch.Tensor
    """The places that have a token, counted through all spans, int64."""
    tokens: torch.Tensor
    """Their tokens, int64."""

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int]], tokens: int, device: torch.device) -> Padded:
        """Spans [start, stop) of a sequence of so many tokens; no two share a token."""
        longest = max(stop - start for start, stop in spans)
        # Made for a quiz they may serve a pass that trains.
        with torch.inference_mode(False):
            tokens_GS = torch.full((len(spans), longest), -1)
            places_N = torch.full((tokens,), -1)
            for i, (start, stop) in enumerate(spans):
                tokens_GS[i, : stop - start] = torch.arange(start, stop)
                places_N[start:stop] = torch.arange(stop - start) + i * longest
            empty_GS, absent_N = tokens_GS < 0, places_N < 0
            filled = (~empty_GS).flatten().nonzero().squeeze(1)
            return cls(
                tokens_GS.clamp(min=0).to(device),
                empty_GS.to(device) if bool(empty_GS.any()) else None,
                places_N.clamp(min=0).to(device),
                absent_N.to(device) if bool(absent_N.any()) else None,
                filled.to(device),
                tokens_GS.flatten()[filled].to(device),
            )

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [G, S, ...]."""
        spread: torch.Tensor = _Spread.apply(values, self)
        return spread

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        """[G, S, ...] -> [N, ...], zeros where a token has no place."""
        gathered: torch.Tensor = _Gathered.apply(values, self)
        return gathered

    def add_to(self, sums_N: torch.Tensor, values: torch.Tensor) -> None:
        """Adds [G, S, ...] to their tokens in [N, ...], in place; other tokens are not touched."""
        flat = values.flatten(0, 1)
        if self.empty_GS is not None:
            flat = flat.index_select(0, self.filled)
        sums_N.index_add_(0, self.tokens, flat)

    def _spread(self, values: torch.Tensor) -> torch.Tensor:
        placed = values.index_select(0, self.tokens_GS.flatten())
        if self.empty_GS is not None:
            placed = placed.masked_fill_(_wide(self.empty_GS.flatten(), placed), 0)
        return placed.view(*self.tokens_GS.shape, *values.shape[1:])

    def _gathered(self, values: torch.Tensor) -> torch.Tensor:
        found = values.flatten(0, 1).index_select(0, self.places_N)
        if self.absent_N is not None:
            found = found.masked_fill_(_wide(self.absent_N, found), 0)
        return found


class _Spread(torch.autograd.Function):
    """Its derivative is the way back; autograd's own would add every empty place to the first token."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: Padded) -> torch.Tensor:
        ctx.places = places
        return places._spread(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.places._gathered(gradients[0]), None


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, places: Padded) -> torch.Tensor:
        ctx.places = places
        return places._gathered(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.places._spread(gradients[0]), None


def _wide(mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return mask.view(-1, *[1] * (values.dim() - 1))
