"""A pass's compiled products on all of its threads: a call of them is one thread's, and holds no lock meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache

import torch

GRAIN = 32
"""Tokens for which a thread of their own is worth its hand-over."""


def shares(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(first, behind the last) of runs of about as many tokens each, for as many threads as torch has here."""
    whole = sum(lengths)
    count = max(1, min(torch.get_num_threads(), len(lengths), whole // GRAIN))
    found: list[tuple[int, int]] = []
    begin = seen = 0
    for place, length in enumerate(lengths):
        seen += length
        if seen * count >= whole * (len(found) + 1):
            found.append((begin, place + 1))
            begin = place + 1
    return found


@cache
def _pool() -> ThreadPoolExecutor:
    # Passes at once have their shares of the threads, so that there are no more works than cores.
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="share")


def side_by_side(calls: Sequence[Callable[[], None]]) -> None:
    """Does all calls, the first of them here; raises the first error after all have ended."""
    others: list[Future[None]] = []
    try:
        for call in calls[1:]:
            others.append(_pool().submit(call))
        calls[0]()
    finally:
        # Also where one could not be begun: the others read and write by address what would be given free.
        wait(others)
    for other in others:
        other.result()
