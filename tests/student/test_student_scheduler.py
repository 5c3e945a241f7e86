"""The worker outlives what goes wrong in its work; where it does not, nobody waits for it."""

from __future__ import annotations

import functools
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from student.inner_loop import Cancelled
from student.metrics import StudentMetrics
from student.scheduler import Job, JobOutcome, Progress, Scheduler
from tutelage.domain.description import EvaluationPhase, EvaluationProgress
from tutelage.domain.errors import Exhausted, Unavailable
from tutelage.domain.evaluation import Failure

QUEUED = EvaluationProgress(EvaluationPhase.QUEUED)
DONE = Failure("done", retryable=False)


class Faulty:
    """Ends the jobs inside, one a piece of work, each after a word of its progress; raises a fault it is given."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.inside: dict[Job, Progress] = {}
        self.fault: Exception | None = None

    @property
    def free(self) -> int:
        return self.slots - len(self.inside)

    def admit(self, job: Job, progress: Progress) -> JobOutcome | None:
        self.inside[job] = progress
        return None

    def advance(self) -> Sequence[tuple[Job, JobOutcome]]:
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        job, progress = next(iter(self.inside.items()))
        progress(EvaluationProgress(EvaluationPhase.TRAINING))
        del self.inside[job]
        return [(job, DONE)]

    def abandon(self) -> None:
        self.inside.clear()


@pytest.fixture
def work() -> Faulty:
    return Faulty(slots=2)


@pytest.fixture
def scheduler(work: Faulty) -> Iterator[Scheduler]:
    scheduler = Scheduler(work, max_queue=8, metrics=StudentMetrics(CollectorRegistry()))
    yield scheduler
    scheduler.close()


def submit(scheduler: Scheduler, name: str, watcher: Callable[[Any], None] | None = None) -> Job:
    key: Any = SimpleNamespace(id=name)
    return scheduler.submit(key, 60, watcher)


def test_after_an_error_out_of_the_work_all_inside_are_told_and_the_next_is_done(
    work: Faulty, scheduler: Scheduler
) -> None:
    def both() -> list[Job]:
        work.fault = RuntimeError("a bug")
        return [submit(scheduler, name) for name in "abc"]

    # Asked for between two pieces of work, so that they enter together.
    jobs = scheduler.call(both).result(10)
    for job in jobs:
        assert job.done.wait(10)
    crashed = Failure("the evaluation crashed (RuntimeError)", retryable=True)
    assert [job.outcome for job in jobs] == [crashed, crashed, DONE]
    assert scheduler.alive
    assert scheduler.free_slots == 2


def test_nobody_attaches_to_what_is_being_stopped(
    work: Faulty, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    plain = work.advance

    def slow() -> Sequence[tuple[Job, JobOutcome]]:
        begun.set()
        assert go_on.wait(10)
        return [(job, Cancelled() if job.stop.is_set() else outcome) for job, outcome in plain()]

    monkeypatch.setattr(work, "advance", slow)
    first = submit(scheduler, "a")
    assert begun.wait(10)
    assert scheduler.cancel("a", Failure("cancelled on request", retryable=False))
    # It is under way still: to say "ended before" would be wrong, and the first reason stays.
    assert scheduler.cancel("a", Failure("nobody watched", retryable=True))
    with pytest.raises(Unavailable, match="being stopped") as caught:
        submit(scheduler, "a")
    assert caught.value.retry_after_s
    go_on.set()
    assert first.done.wait(10)
    assert first.outcome == Failure("cancelled on request", retryable=False)
    assert not scheduler.cancel("a", Failure("cancelled on request", retryable=False))
    again = submit(scheduler, "a")
    assert again.done.wait(10)
    assert again.outcome == DONE


def test_when_to_come_again_follows_what_reports_take_and_not_what_ends_at_once(
    work: Faulty, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        assert submit(scheduler, f"refused at once {i}").done.wait(10)
    go_on = threading.Event()
    plain = work.advance
    monkeypatch.setattr(work, "advance", lambda: plain() if go_on.wait(10) else [])
    with pytest.raises(Exhausted) as caught:
        list(map(functools.partial(submit, scheduler), map(str, range(11))))
    go_on.set()
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s > 1


def test_a_watcher_that_raises_is_left_and_the_others_are_told(scheduler: Scheduler) -> None:
    heard: list[Any] = []

    def closed(event: Any) -> None:
        if event != QUEUED:
            raise RuntimeError("Event loop is closed")

    def both() -> Job:
        submit(scheduler, "a", closed)
        return submit(scheduler, "a", heard.append)

    job = scheduler.call(both).result(10)
    assert job.done.wait(10)
    assert job.outcome == heard[-1] == DONE
    assert closed not in job.watchers
    later = submit(scheduler, "b", lambda event: None)
    assert later.done.wait(10)
    assert scheduler.alive


def test_when_the_worker_dies_nobody_waits_for_it(
    work: Faulty, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(job: Job) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(scheduler, "_admit", dies)
    jobs = scheduler.call(lambda: [submit(scheduler, name) for name in "abc"]).result(10)
    for job in jobs:
        assert job.done.wait(10)
        assert isinstance(job.outcome, Failure)
        assert job.outcome.retryable
    assert not scheduler.alive
    with pytest.raises(Unavailable):
        submit(scheduler, "d")
    with pytest.raises(Unavailable):
        scheduler.call(lambda: None)


def test_a_call_whose_caller_left_is_not_done_and_keeps_nobody_from_closing(scheduler: Scheduler) -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def wait() -> None:
        begun.set()
        go_on.wait(10)

    scheduler.call(wait)
    assert begun.wait(10)
    left, stayed = (scheduler.call(functools.partial(done.append, name)) for name in "ab")
    assert left.cancel()
    threading.Timer(0.2, go_on.set).start()
    scheduler.close()
    with pytest.raises(Unavailable):
        stayed.result(10)
    assert not done


def test_a_worker_that_waits_holds_nothing_of_the_call_before(scheduler: Scheduler) -> None:
    class Weights:
        pass

    weights = Weights()
    held = weakref.ref(weights)
    scheduler.call(functools.partial(id, weights)).result(10)
    del weights
    deadline = time.monotonic() + 10
    while held() is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held() is None


def test_who_was_taken_from_the_queue_takes_a_slot_while_calls_are_done_first(
    work: Faulty, scheduler: Scheduler
) -> None:
    gates = [(threading.Event(), threading.Event()) for _ in range(2)]
    calls = [lambda entered=entered, left=left: (entered.set(), left.wait(10)) for entered, left in gates]
    (first, go_on), (second, end) = gates
    scheduler.call(calls[0])
    assert first.wait(10)
    submit(scheduler, "a")
    scheduler.call(calls[1])
    go_on.set()
    assert second.wait(10)
    # Of what is inside the work knows nothing yet.
    assert (scheduler.queued, work.free, scheduler.free_slots) == (0, 2, 1)
    end.set()
