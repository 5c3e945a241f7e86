"""Gradient checkpointing, only where the memory asks for it: a layer's activations are computed twice and kept once.

transformers' own switch puts the whole model into training mode; here the layers alone are told, so that dropout stays
off.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.checkpoint import checkpoint

from student.lower_layers import decoder_layers


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Within the block, backward pass included, each decoder layer keeps its input only.

    Of all threads: the layers are shared, so no other pass may be under way.
    """
    layers = list(decoder_layers(model))
    for layer in layers:
        layer.gradient_checkpointing = True  # type: ignore[assignment]
        # Of the module alone: its parts stay in evaluation mode.
        layer.training = True
        layer._gradient_checkpointing_func = functools.partial(  # type: ignore[assignment]
            checkpoint, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = False  # type: ignore[assignment]
            layer.training = False
