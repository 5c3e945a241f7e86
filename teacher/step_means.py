"""What a trainer logged over the steps of an update: means, and the loss of the first step and of the last.

Bounded, whatever an algorithm logs: the result that carries it travels and is stored. A step's value that is no finite
number is left out of its mean, for one of them would make it none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tutelage.domain.policy import LONGEST_METRIC, MOST_METRICS

LOSS = "loss"


@dataclass(frozen=True)
class StepMeans:
    """Of the steps that there were."""

    metrics: dict[str, float] = field(default_factory=dict)
    first_loss: float | None = None
    last_loss: float | None = None


class LoggedSteps:
    """Takes step after step."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}
        self._losses: list[float] = []

    def add(self, loss: float, logged: Mapping[str, float]) -> None:
        """A step; names beyond the bounds are passed over, those that came first are kept."""
        self._losses = [*self._losses[:1], loss]
        for name, value in {LOSS: loss, **logged}.items():
            new = 0 < len(name) <= LONGEST_METRIC and len(self._values) < MOST_METRICS
            if math.isfinite(value) and (new or name in self._values):
                self._values.setdefault(name, []).append(float(value))

    def means(self) -> StepMeans:
        """So far."""
        means = {name: sum(each) / len(each) for name, each in self._values.items()}
        first, last = (self._losses[0], self._losses[-1]) if self._losses else (math.nan, math.nan)
        return StepMeans(
            {name: mean for name, mean in means.items() if math.isfinite(mean)}, _if_finite(first), _if_finite(last)
        )


def _if_finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
