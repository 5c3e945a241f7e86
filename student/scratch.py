"""Room for the products of a thread, used again and again: what lies there stays in the cache, and no page is new."""

from __future__ import annotations

import threading

import torch


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.values = torch.empty(0, dtype=torch.float32)


_SCRATCH = _Scratch()


def scratch(values: int) -> int:
    """The address of so many float32 of any content, on the CPU; this thread's until it asks again."""
    if _SCRATCH.values.numel() < values:
        # One made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            _SCRATCH.values = torch.empty(values, dtype=torch.float32)
    return _SCRATCH.values.data_ptr()
