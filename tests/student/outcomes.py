"""Outcomes of evaluations: of one alone, and of several that all wait when the first is begun."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from student.engine import StudentEngine
from student.scheduler import JobOutcome, Scheduler
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport

PATIENCE_S = 600
"""Seconds an evaluation may take on a machine that is busy with other work."""


@contextmanager
def held(scheduler: Scheduler) -> Iterator[None]:
    """Within the block the worker is busy with a call and takes nothing in."""
    gate, entered = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        gate.wait(PATIENCE_S)

    scheduler.call(wait)
    assert entered.wait(PATIENCE_S)
    try:
        yield
    finally:
        gate.set()


def together(engine: StudentEngine, keys: Iterable[EvaluationKey]) -> list[JobOutcome | None]:
    """The outcomes of evaluations that enter the room at once."""
    with held(engine._scheduler):
        jobs = [engine.evaluate(key, lease_s=PATIENCE_S) for key in keys]
    for job in jobs:
        assert job.done.wait(PATIENCE_S)
    return [job.outcome for job in jobs]


def outcome_of(engine: StudentEngine, key: EvaluationKey) -> JobOutcome | None:
    job = engine.evaluate(key, lease_s=PATIENCE_S)
    assert job.done.wait(PATIENCE_S)
    return job.outcome


def report_of(engine: StudentEngine, key: EvaluationKey) -> EvaluationReport:
    outcome = outcome_of(engine, key)
    assert isinstance(outcome, EvaluationReport), outcome
    return outcome


def timeless(outcome: object) -> EvaluationReport:
    """A report but for what two evaluations of one key need not share: how long it took, when, and what was known."""
    assert isinstance(outcome, EvaluationReport), outcome
    cost = dataclasses.replace(outcome.cost, train_seconds=0, quiz_seconds=0, baseline_cached=False)
    return dataclasses.replace(outcome, cost=cost, finished_at=outcome.finished_at.min)
