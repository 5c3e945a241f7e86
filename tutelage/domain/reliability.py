"""How much of what rewards say about candidates is signal, and the estimate that shrinks the rest away.

Candidates of one document are compared with each other only, so everything here is within documents: a one-way analysis
of variance of the repeats (seeds, students) of each candidate, pooled over documents. Shrout and Fleiss, Intraclass
correlations (1979), case 1; the shrunken mean is the empirical Bayes estimate of the same random-effects model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Repeats = Sequence[float]
"""Rewards of one candidate under several seeds."""
Group = Sequence[Repeats]
"""Candidates of one document."""


@dataclass(frozen=True)
class Reliability:
    """Components of variance, and what share of a candidate's reward is signal."""

    between: float
    """Variance of the candidates' true rewards within a document; 0 where the estimate is negative."""
    within: float
    """Variance of one repeat about its candidate's true reward."""
    single: float
    """Intraclass correlation of one repeat, -1 to 1: what two repeats of a candidate have in common."""
    mean: float
    """Intraclass correlation of a candidate's mean over `repeats` repeats; below 0 where noise alone would do more."""
    repeats: float
    """Repeats a candidate, the harmonic-like mean of the analysis of variance where they differ."""

    def of_mean(self, repeats: int) -> float:
        """Share of signal, 0 to 1, in a mean over `repeats` repeats."""
        noise = self.within / repeats
        return self.between / (self.between + noise) if self.between > 0 else 0.0


def reliability(groups: Sequence[Group]) -> Reliability | None:
    """The components pooled over documents; None where no candidate has a second repeat or no group a second candidate.

    Candidates without a repeat are left out.
    """
    kept = [[repeats for repeats in group if repeats] for group in groups]
    kept = [group for group in kept if len(group) > 1]
    candidates = [repeats for group in kept for repeats in group]
    degrees_within = sum(len(repeats) - 1 for repeats in candidates)
    if not degrees_within:
        return None
    degrees_between = sum(len(group) - 1 for group in kept)
    within = sum(sum((value - _mean(repeats)) ** 2 for value in repeats) for repeats in candidates) / degrees_within
    spread, size = 0.0, 0.0
    for group in kept:
        count = sum(len(repeats) for repeats in group)
        middle = sum(sum(repeats) for repeats in group) / count
        spread += sum(len(repeats) * (_mean(repeats) - middle) ** 2 for repeats in group)
        size += count - sum(len(repeats) ** 2 for repeats in group) / count
    between_squares, repeats_each = spread / degrees_between, size / degrees_between
    if between_squares == 0 and within == 0:
        # All rewards of each document are equal: there is nothing to tell apart.
        return Reliability(0.0, 0.0, 0.0, 0.0, repeats_each)
    single = (between_squares - within) / (between_squares + (repeats_each - 1) * within)
    mean = (between_squares - within) / between_squares if between_squares else float("-inf")
    between = max(0.0, (between_squares - within) / repeats_each)
    return Reliability(between, within, single, mean, repeats_each)


def shrunken_means(group: Group, known: Reliability) -> list[float | None]:
    """Each candidate's mean, drawn towards its document's by the share that is noise; None without a repeat.

    A candidate with fewer repeats is drawn further. Where nothing is signal all get the document's mean.
    """
    scored = [repeats for repeats in group if repeats]
    if not scored:
        return [None] * len(group)
    # The document's mean weighs each candidate by how precisely it is known.
    weights = [1 / ((known.between + known.within / len(repeats)) or 1.0) for repeats in scored]
    middle = sum(weight * _mean(repeats) for weight, repeats in zip(weights, scored, strict=True)) / sum(weights)
    return [
        middle + (known.of_mean(len(repeats)) if known.within else 1.0) * (_mean(repeats) - middle) if repeats else None
        for repeats in group
    ]


def _mean(values: Repeats) -> float:
    return sum(values) / len(values)
