"""Advantages: how much better than its group each candidate is.

Group-relative: reward less the group's mean, over its standard deviation (GRPO, arXiv 2402.03300), over that of the
whole batch, or as it is (Dr. GRPO, arXiv 2503.20783: dividing favours groups whose rewards hardly differ).
Leave-one-out: reward less the mean of the others (RLOO, arXiv 2402.14740).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

Scale = Literal["group", "batch", "none"]
_TINY = 1e-4
"""As in TRL: keeps a group of nearly equal rewards from being blown up."""


def group_relative(groups: Sequence[Sequence[float]], scale: Scale) -> list[list[float]]:
    """One advantage a reward, in the same order; standard deviations are of samples (n - 1)."""
    centred = [[reward - statistics.fmean(group) for reward in group] for group in groups]
    if scale == "none":
        return centred
    if scale == "batch":
        every = [reward for group in groups for reward in group]
        spread = _deviation(every)
        return [[value / (spread + _TINY) for value in group] for group in centred]
    return [
        [value / (_deviation(rewards) + _TINY) for value in group]
        for group, rewards in zip(centred, groups, strict=True)
    ]


def leave_one_out(groups: Sequence[Sequence[float]], normalise: bool) -> list[list[float]]:
    """One advantage a reward; every group has two or more. `normalise`: to mean 0 and deviation 1 over the batch."""
    found = [[reward - (sum(group) - reward) / (len(group) - 1) for reward in group] for group in groups]
    if not normalise:
        return found
    every = [value for group in found for value in group]
    mean, spread = statistics.fmean(every), _deviation(every)
    return [[(value - mean) / (spread + _TINY) for value in group] for group in found]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
