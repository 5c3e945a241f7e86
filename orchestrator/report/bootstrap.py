"""Percentile bootstrap of a mean and of differences, paired or not, seeded, so that a report repeats to the digit.

The percentile method: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float
    count: int
    """Units (documents) that were resampled."""

    @property
    def excludes_zero(self) -> bool:
        return self.count > 1 and (self.low > 0 or self.high < 0)

    def scaled(self, factor: float) -> Interval:
        """In another unit; the factor is above 0."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor, self.count)


def mean_interval(
    values: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The mean of `values` with its percentile interval; None without values, no width with a single one."""
    if not values:
        return None
    sample = np.asarray(values, dtype=np.float64)
    if len(sample) == 1:
        only = float(sample[0])
        return Interval(only, only, only, 1)
    random = np.random.default_rng(seed)
    means = sample[random.integers(0, len(sample), size=(resamples, len(sample)))].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, (tail, 1.0 - tail))
    return Interval(float(sample.mean()), float(low), float(high), len(sample))


def paired_interval(
    before: Sequence[float], after: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The mean of `after - before` with its interval; pairs are resampled together.

    Raises ValueError when the two differ in length.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after make no pairs")
    differences = [later - earlier for earlier, later in zip(before, after, strict=True)]
    return mean_interval(differences, level=level, resamples=resamples, seed=seed)


def unpaired_interval(
    first: Sequence[float], second: Sequence[float], *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The mean of `second` less that of `first`, each resampled by itself; None when either has no value.

    `count` is that of the smaller one, so that a single value on either side never excludes zero.
    """
    if not first or not second:
        return None
    random = np.random.default_rng(seed)
    means = []
    for values in (first, second):
        sample = np.asarray(values, dtype=np.float64)
        means.append(sample[random.integers(0, len(sample), size=(resamples, len(sample)))].mean(axis=1))
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means[1] - means[0], (tail, 1.0 - tail))
    difference = float(np.mean(second)) - float(np.mean(first))
    return Interval(difference, float(low), float(high), min(len(first), len(second)))
