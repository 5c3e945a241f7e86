"""What the worker thread logs of an evaluation carries the ids of the call that asked for it, and of no other."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence

import pytest
from prometheus_client import CollectorRegistry

from student.engine import StudentEngine
from student.metrics import StudentMetrics
from student.scheduler import Job, JobOutcome, Progress, Scheduler
from tutelage.domain.evaluation import EvaluationKey, Failure
from tutelage.rpc.logging import JsonFormatter, bind

log = logging.getLogger("student.failing")


class Failing:
    """Takes two jobs in, logs each, and fails both at once."""

    slots = 2

    def __init__(self) -> None:
        self.inside: list[Job] = []

    @property
    def free(self) -> int:
        return 2 - len(self.inside)

    def admit(self, job: Job, progress: Progress) -> JobOutcome | None:
        log.warning("admitted %s", job.id)
        self.inside.append(job)
        return None

    def advance(self) -> Sequence[tuple[Job, JobOutcome]]:
        if len(self.inside) < 2:
            return []
        ended, self.inside = self.inside, []
        return [(job, RuntimeError("the machine broke")) for job in ended]

    def abandon(self) -> None:
        self.inside.clear()


@pytest.fixture
def lines() -> Iterator[list[dict[str, str]]]:
    """The log as JSON, each line made in the thread that logs it."""
    found: list[dict[str, str]] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter().format(record)))

    handler = Keeping()
    logging.getLogger("student").addHandler(handler)
    yield found
    logging.getLogger("student").removeHandler(handler)


def test_each_line_names_its_run_and_evaluation(
    student: Callable[..., StudentEngine], make_key: Callable[..., EvaluationKey], lines: list[dict[str, str]]
) -> None:
    engine = student()
    scheduler = Scheduler(Failing(), max_queue=4, metrics=StudentMetrics(CollectorRegistry()))
    jobs = {}
    for run, seed in (("one", 1), ("two", 2)):
        key = make_key(engine, seed=seed)
        with bind(run_id=run, evaluation_id=key.id):
            jobs[run] = scheduler.submit(key, 60)
    for job in jobs.values():
        assert job.done.wait(30)
        assert isinstance(job.outcome, Failure)
    scheduler.close()
    told = [(line["message"].split()[0], line.get("run_id"), line.get("evaluation_id")) for line in lines]
    assert sorted(told) == [(what, run, jobs[run].id) for what in ("admitted", "evaluation") for run in ("one", "two")]
