"""The layers below the lowest adapted one: what leaves them never changes in an inner loop, so it is computed once.

A decoder is run in two parts by leaving layers out: the lower part ends where the first adapted layer would begin, the
upper part begins with what was seen there. Shape suffixes: N tokens of all rows, T those of one, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tutelage.domain.errors import InvalidInput


class _LeftOut(nn.Module):
    """Stands for a decoder layer and hands its input on."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Some decoders choose the mask by it.
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, hidden_1ND: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_1ND


class _Seen(_LeftOut):
    """Remembers what would have entered the layer."""

    hidden_1ND: torch.Tensor

    def forward(self, hidden_1ND: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.hidden_1ND = hidden_1ND
        return hidden_1ND


class _Given(_LeftOut):
    """Puts what was remembered in place of what came."""

    def __init__(self, layer: nn.Module, hidden_1ND: torch.Tensor) -> None:
        super().__init__(layer)
        self.hidden_1ND = hidden_1ND

    def forward(self, hidden_1ND: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.hidden_1ND


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder's layers in their order."""
    layers: nn.ModuleList = model.get_decoder().layers
    return layers


def first_adapted(model: Any, last_layers: int) -> int:
    """The lowest of the last so many layers, 0-based; 0 where none is asked for, which means all.

    Raises InvalidInput when the model has fewer layers.
    """
    if not last_layers:
        return 0
    count = len(decoder_layers(model))
    if not 0 <= last_layers <= count:
        raise InvalidInput.of("settings.adapt_last_layers", last_layers, f"0 to {count}, the layers of this model")
    return count - last_layers


@contextmanager
def _replaced(model: Any, replace: Callable[[int, nn.Module], nn.Module]) -> Iterator[None]:
    decoder = model.get_decoder()
    whole = decoder.layers
    decoder.layers = nn.ModuleList([replace(i, layer) for i, layer in enumerate(whole)])
    try:
        yield
    finally:
        decoder.layers = whole


@torch.no_grad()
def below(model: Any, first: int, inputs: dict[str, Any]) -> torch.Tensor:
    """[N, D] that enters layer `first` (above 0), for one flat sequence."""
    seen = _Seen(decoder_layers(model)[first])

    def replace(i: int, layer: nn.Module) -> nn.Module:
        return layer if i < first else seen if i == first else _LeftOut(layer)

    with _replaced(model, replace):
        model.get_decoder()(**inputs)
    hidden_ND: torch.Tensor = seen.hidden_1ND[0]
    return hidden_ND


@contextmanager
def above(model: Any, first: int, parts_TD: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within the block the model goes on from layer `first` (above 0) with these rows, whatever ids it is given."""
    hidden_1ND = torch.cat(list(parts_TD)).unsqueeze(0)

    def replace(i: int, layer: nn.Module) -> nn.Module:
        return layer if i >= first else _Given(layer, hidden_1ND) if i == first - 1 else _LeftOut(layer)

    with _replaced(model, replace):
        yield
