"""Rewards of a run's candidates beside those that other settings would have given, and how alike they rank.

Only candidates of one group compete, so ranks are compared within groups: Spearman's correlation, a mean over those
groups in which both tell candidates apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tutelage.domain.policy import told_apart


@dataclass(frozen=True)
class RecomputedReward:
    candidate_id: str
    round: int
    """1-based."""
    task_id: str
    student: str
    """For whom it was written; empty where for all."""
    stored: float | None
    """By the run's own settings; None is unscored."""
    recomputed: float | None
    """By the other settings; None is unscored."""

    @property
    def group(self) -> str:
        """The candidates that it competes with: round, task and, where there is one, student."""
        return "/".join(str(part) for part in (self.round, self.task_id, self.student) if part != "")


@dataclass(frozen=True)
class RewardComparison:
    """Of the candidates that both settings score."""

    scored: int
    mean_stored: float | None
    mean_recomputed: float | None
    rank_correlation: float | None
    """Mean over groups, -1 to 1; None where in no group both tell candidates apart."""
    groups: int
    """Those that it is the mean of."""


def compared(rewards: Sequence[RecomputedReward]) -> RewardComparison:
    """How alike the two settings are on these candidates."""
    groups: dict[str, list[tuple[float, float]]] = {}
    for each in rewards:
        if each.stored is not None and each.recomputed is not None:
            groups.setdefault(each.group, []).append((each.stored, each.recomputed))
    pairs = [pair for group in groups.values() for pair in group]
    if not pairs:
        return RewardComparison(0, None, None, None, 0)
    stored, recomputed = zip(*pairs, strict=True)
    alike = [rank_correlation(*zip(*group, strict=True)) for group in groups.values()]
    known = [value for value in alike if value is not None]
    correlation = _mean(known) if known else None
    return RewardComparison(len(pairs), _mean(stored), _mean(recomputed), correlation, len(known))


def _mean(values: Sequence[float]) -> float:
    # Divided first: a sum of large rewards may be no finite number where their mean is.
    return math.fsum(value / len(values) for value in values)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's, equal values sharing the mean of their ranks; None where one of them ranks nothing."""
    middle = (len(one) + 1) / 2
    first, second = ([rank - middle for rank in _ranks(values)] for values in (one, other))
    scale = math.sqrt(math.fsum(a * a for a in first) * math.fsum(b * b for b in second))
    return math.fsum(a * b for a, b in zip(first, second, strict=True)) / scale if scale else None


def _ranks(values: Sequence[float]) -> list[float]:
    rounded = [told_apart(value) for value in values]
    ordered = sorted(rounded)
    first = {value: place for place, value in reversed(list(enumerate(ordered, start=1)))}
    return [first[value] + (ordered.count(value) - 1) / 2 for value in rounded]
