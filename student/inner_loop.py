"""The inner loop: rows, their order, the learning rate of a step, and when a loop has diverged.

AdamW on a fresh adapter over an edit's documents. Micro-batches are shuffled each epoch by a seeded generator; the loss
is the mean over the micro-batch's supervised tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.self_edit import Rejection, RejectionReason, Schedule
from tutelage.models.chat import NO_LOSS

EXPLODED = 4.0
"""A loss this many times above both its start and that of a uniform guess has exploded."""
PLATEAU = 0.01
"""Share of the best epoch's loss by which another must lie below it to be progress."""


class Cancelled(Exception):
    """The evaluation was told to stop; nothing of it is kept."""


@dataclass(frozen=True)
class Row:
    """A training document in ids; labels are -100 where no loss is."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def supervised(self) -> int:
        # The first token is never predicted.
        return sum(label != NO_LOSS for label in self.labels[1:])


@dataclass(frozen=True)
class Trained:
    """What the loop cost."""

    steps: int
    tokens: int
    supervised_tokens: int
    first_loss: float
    last_loss: float
    seconds: float
    """Of each step its share, by its tokens: those of neighbours add up to the time that passed."""


def learning_rate_at(step: int, steps: int, settings: InnerLoopSettings) -> float:
    """The learning rate of the 0-based `step`: whole at the first, towards 0 after the last (linear and cosine)."""
    done = step / steps
    if settings.schedule is Schedule.LINEAR:
        return settings.learning_rate * (1 - done)
    if settings.schedule is Schedule.COSINE:
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    return settings.learning_rate


def micro_batches(rows: Sequence[Row], settings: InnerLoopSettings, seed: int) -> list[list[Row]]:
    """All micro-batches of all epochs, in training order."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(settings.epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for start in range(0, len(order), settings.batch_size):
            batches.append([rows[i] for i in order[start : start + settings.batch_size]])
    return batches


class Plateau:
    """Whether the mean loss of an epoch has stopped falling for `patience` epochs in a row; never with 0."""

    def __init__(self, patience: int, steps_an_epoch: int) -> None:
        self._patience, self._steps = patience, steps_an_epoch
        self._losses: list[float] = []
        self._best = math.inf
        self._waited = 0

    @property
    def reached(self) -> bool:
        return 0 < self._patience <= self._waited

    def add(self, loss: float) -> None:
        """The mean loss of one more step, nats."""
        self._losses.append(loss)
        if len(self._losses) < self._steps:
            return
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        self._waited = 0 if mean < (1 - PLATEAU) * self._best else self._waited + 1
        self._best = min(self._best, mean)


def exploded_above(first_loss: float, vocabulary: int) -> float:
    """The loss, in nats, above which a loop that began at `first_loss` counts as diverged."""
    return EXPLODED * max(first_loss, math.log(vocabulary))


def diverged(field: str, value: float, step: int, allowed: str) -> Rejection:
    return Rejection(
        RejectionReason.DIVERGED,
        field=field,
        value=f"{value:g}",
        allowed=allowed,
        message=f"training diverged at step {step + 1}: {field} {value:g}",
    )
