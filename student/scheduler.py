"""Jobs by id on one worker thread: first come first served, watched, leased and stoppable.

The worker owns the model. It takes jobs in while there is a free slot and works on all it has, a piece at a time.
Asking for a job that is there attaches to it. A job nobody has watched for its lease is stopped. Short calls (answers,
commits) are done between two pieces of work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from student.inner_loop import Cancelled
from student.metrics import StudentMetrics
from tutelage.domain.description import EvaluationPhase, EvaluationProgress, EvaluationState, EvaluationStatus
from tutelage.domain.errors import Exhausted, Unavailable
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, Failure

log = logging.getLogger(__name__)
T = TypeVar("T")
Watcher = Callable[[EvaluationProgress | EvaluationOutcome], None]
REMEMBERED = 512
"""Ended jobs whose status stays readable when nothing final was stored."""


@dataclass(eq=False)
class Job:
    """One evaluation under way; written only under the scheduler's lock, but for `stop`."""

    key: EvaluationKey
    id: str
    lease_s: float
    state: EvaluationState = EvaluationState.QUEUED
    progress: EvaluationProgress = field(default_factory=lambda: EvaluationProgress(EvaluationPhase.QUEUED))
    outcome: EvaluationOutcome | None = None
    watchers: list[Watcher] = field(default_factory=list)
    unwatched_since: float = field(default_factory=time.monotonic)
    queued_at: float = field(default_factory=time.monotonic)
    stop: threading.Event = field(default_factory=threading.Event)
    stopped_by: Failure | None = None
    done: threading.Event = field(default_factory=threading.Event)
    context: Context = field(default_factory=copy_context)
    """Of the call that asked for it first: what is logged about the job carries that call's ids."""

    def status(self) -> EvaluationStatus:
        return EvaluationStatus(self.state, self.progress, self.outcome)


Progress = Callable[[EvaluationProgress], None]
JobOutcome = EvaluationOutcome | Exception
"""An exception is a fault, or Cancelled for a job whose `stop` is set."""


class Work(Protocol):
    """What is done with jobs; called by the worker thread alone, but for `slots` and `free`."""

    @property
    def slots(self) -> int: ...

    @property
    def free(self) -> int: ...

    def admit(self, job: Job, progress: Progress) -> JobOutcome | None:
        """Takes a job in; its outcome when it ended at once."""

    def advance(self) -> Sequence[tuple[Job, JobOutcome]]:
        """One piece of work on all that is in; the jobs that ended by it."""

    def abandon(self) -> None:
        """Forgets all that is in, once an error came out of `advance`."""


class Scheduler:
    """The queue and the slots of one student."""

    def __init__(self, work: Work, *, max_queue: int, metrics: StudentMetrics) -> None:
        self._work, self._max_queue, self._metrics = work, max_queue, metrics
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._active: dict[str, Job] = {}
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._inside: dict[str, tuple[Job, float]] = {}
        self._calling = False
        self._closed = False
        self._mean_seconds = 10.0
        self._threads = [
            threading.Thread(target=self._run, name="room", daemon=True),
            threading.Thread(target=self._watch_leases, name="leases", daemon=True),
        ]
        self._measure()
        for thread in self._threads:
            thread.start()

    @property
    def free_slots(self) -> int:
        """What is free now; what waits in the queue will take some of it."""
        # Who is taken from the queue takes a slot before the work knows of it: calls are done first.
        return max(0, min(self._work.free, self._work.slots - len(self._inside)))

    @property
    def idle(self) -> bool:
        """Whether a call would be done at once."""
        return not self._inside and not self._calling

    @property
    def alive(self) -> bool:
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def submit(self, key: EvaluationKey, lease_s: float, watcher: Watcher | None = None) -> Job:
        """The job of this key: the one under way, or a new one at the end of the queue.

        Exhausted when that is full, Unavailable while the one under way is being stopped.
        """
        job_id = key.id
        with self._changed:
            if self._closed:
                raise Unavailable("the student is shutting down")
            job = self._active.get(job_id)
            if job is not None and job.stop.is_set():
                # Who came now would be told that another had cancelled it.
                raise Unavailable("this evaluation is being stopped; it can begin anew in a moment", retry_after_s=1.0)
            if job is None:
                if len(self._queue) >= self._max_queue and self.free_slots <= len(self._queue):
                    retry = self._mean_seconds * max(1, len(self._queue)) / max(1, self._work.slots)
                    raise Exhausted(f"{len(self._queue)} evaluations wait already", retry_after_s=round(retry, 1))
                job = Job(key, job_id, lease_s)
                self._active[job_id] = job
                self._ended.pop(job_id, None)
                self._queue.append(job)
                self._measure()
                self._changed.notify_all()
            job.lease_s = max(job.lease_s, lease_s)
            if watcher is not None:
                job.watchers.append(watcher)
                watcher(job.progress)
            return job

    def find(self, job_id: str) -> Job | None:
        """A job under way, or one that ended a while ago."""
        with self._changed:
            return self._active.get(job_id) or self._ended.get(job_id)

    def detach(self, job: Job, watcher: Watcher) -> None:
        """The watcher left; the lease starts with the last of them."""
        with self._changed:
            if watcher in job.watchers:
                job.watchers.remove(watcher)
            if not job.watchers:
                job.unwatched_since = time.monotonic()

    def cancel(self, job_id: str, why: Failure) -> bool:
        """Stops a job between two steps; False when it had ended before."""
        with self._changed:
            job = self._active.get(job_id)
            if job is None or job.stop.is_set():
                # Who asks again of one that is being stopped gets the same answer.
                return job is not None
            job.stopped_by = why
            job.stop.set()
            if job in self._queue:
                self._queue.remove(job)
                self._end(job, why, "cancelled", 0.0)
            return True

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Runs `function()` on the worker thread, before its next piece of work."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise Unavailable("the student is shutting down")
            # Who left and cancelled no longer waits.
            self._calls = deque(each for each in self._calls if not each[1].cancelled())
            if len(self._calls) >= max(8, self._max_queue):
                raise Exhausted(f"{len(self._calls)} calls wait already", retry_after_s=round(self._mean_seconds, 1))
            self._calls.append((function, future))
            self._changed.notify_all()
        return future

    def close(self, timeout_s: float = 30) -> None:
        """Stops all jobs as retryable failures and waits for the threads."""
        why = Failure("the student is shutting down", retryable=True)
        with self._changed:
            self._closed = True
            for job_id in list(self._active):
                self.cancel(job_id, why)
            self._refuse_calls(why)
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _refuse_calls(self, why: Failure) -> None:
        for _, future in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(Unavailable(why.message))
        self._calls.clear()

    def _run(self) -> None:
        try:
            # What a turn held is let go of before the next one waits.
            while self._turn():
                pass
        except Exception:
            # The student is unhealthy from now on, and nobody waits for what is no longer done.
            log.exception("the worker died")
            why = Failure("the student's worker died", retryable=True)
            with self._changed:
                self._closed = True
                self._queue.clear()
                self._inside.clear()
                for job in list(self._active.values()):
                    self._end(job, why, "failed", 0.0)
                self._refuse_calls(why)

    def _turn(self) -> bool:
        """Waits for work, does the calls, fills free slots and takes a step; False once all is closed."""
        with self._changed:
            while not (self._queue or self._calls or self._inside or self._closed):
                self._changed.wait()
            if self._closed and not self._inside:
                return False
            calls = list(self._calls)
            jobs: list[Job] = []
            self._calls.clear()
            self._calling = bool(calls)
            while self._queue and len(jobs) < self._work.free:
                job = self._queue.popleft()
                job.state = EvaluationState.RUNNING
                self._metrics.queue_seconds.observe(time.monotonic() - job.queued_at)
                self._inside[job.id] = (job, time.monotonic())
                jobs.append(job)
        for function, future in calls:
            _do_call(function, future)
        self._calling = False
        for job in jobs:
            self._admit(job)
        with self._changed:
            self._measure()
        if self._inside:
            self._advance()
        return True

    def _admit(self, job: Job) -> None:
        try:
            outcome = job.context.run(self._work.admit, job, lambda progress: self._progress(job, progress))
        except Exception as error:
            outcome = error
        if outcome is not None:
            self._ended_with(job, outcome)

    def _advance(self) -> None:
        try:
            ended = self._work.advance()
        except Exception as error:
            # The room ends what fails; an error out of it is one of our own, and no job may hang on it.
            log.exception("the work on %d evaluations failed", len(self._inside))
            ended = [(job, error) for job, _ in list(self._inside.values())]
            # Who stayed in the room would hold a slot that nobody gives back.
            self._work.abandon()
        for job, outcome in ended:
            self._ended_with(job, outcome)

    def _ended_with(self, job: Job, result: JobOutcome) -> None:
        if isinstance(result, Cancelled):
            outcome: EvaluationOutcome = job.stopped_by or Failure("cancelled")
        elif isinstance(result, Exhausted):
            outcome = Failure(str(result), retryable=True, exhausted=True)
        elif isinstance(result, Exception):
            # The process lives, and a fault of the machine is never a report.
            job.context.run(log.error, "evaluation %s failed", job.id, exc_info=result)
            outcome = Failure(f"the evaluation crashed ({type(result).__name__})", retryable=True)
        else:
            outcome = result
        label = "report" if isinstance(outcome, EvaluationReport) else "rejected"
        if isinstance(outcome, Failure):
            label = "cancelled" if job.stop.is_set() else "failed"
        with self._changed:
            inside = self._inside.pop(job.id, None)
            if inside is None:
                return
            seconds = time.monotonic() - inside[1]
            if label == "report":
                self._mean_seconds += 0.3 * (seconds - self._mean_seconds)
            self._end(job, outcome, label, seconds)

    def _end(self, job: Job, outcome: EvaluationOutcome, label: str, seconds: float) -> None:
        job.state, job.outcome = EvaluationState.DONE, outcome
        self._active.pop(job.id, None)
        self._ended[job.id] = job
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)
        self._metrics.evaluations.labels(label).inc()
        self._metrics.evaluation_seconds.labels(label).observe(seconds)
        if isinstance(outcome, EvaluationReport):
            self._metrics.last_success.set_to_current_time()
        self._tell(job, outcome)
        self._measure()
        job.done.set()

    def _progress(self, job: Job, progress: EvaluationProgress) -> None:
        with self._changed:
            job.progress = progress
            self._tell(job, progress)

    def _tell(self, job: Job, event: EvaluationProgress | EvaluationOutcome) -> None:
        for watcher in list(job.watchers):
            try:
                watcher(event)
            except Exception as error:
                # Such as one whose event loop is closed: its reader is gone, which is no fault of the work.
                log.warning("a watcher of evaluation %s left: %s: %s", job.id, type(error).__name__, error)
                self.detach(job, watcher)

    def _watch_leases(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = time.monotonic()
                for job in list(self._active.values()):
                    if not job.watchers and now - job.unwatched_since > job.lease_s:
                        why = f"nobody watched the evaluation for {job.lease_s:g} s"
                        self.cancel(job.id, Failure(why, retryable=True))
                self._changed.wait(0.2)

    def _measure(self) -> None:
        self._metrics.queue.set(len(self._queue))
        free = self.free_slots
        self._metrics.slots.labels("busy").set(max(0, self._work.slots - free))
        self._metrics.slots.labels("free").set(free)


def _do_call(function: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
