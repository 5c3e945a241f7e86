"""What libraries print while a model is loaded and trained that tells an operator nothing, each silenced by its name.

Anything else that a library has to say is still said.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_USELESS_LINES = {
    # That kernel takes repacked weights, which `protect_gradients` forbids.
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),
}
_USELESS_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Between PEFT and transformers; neither is called so here.
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),
)


class _Without(logging.Filter):
    def __init__(self, beginnings: tuple[str, ...]) -> None:
        super().__init__()
        self.beginnings = beginnings

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self.beginnings)


def silence_known_lines() -> None:
    """Drops the known lines and warnings; to be called before bitsandbytes is imported, which logs one of them."""
    for name, beginnings in _USELESS_LINES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(present, _Without) for present in logger.filters):
            logger.addFilter(_Without(beginnings))
    for message, category in _USELESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """No bars of transformers on standard error, which in a service's log are lines of control characters."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
