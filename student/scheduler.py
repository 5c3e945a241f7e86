"""Jobs by id on a few worker threads: first come first served, watched, leased and stoppable.

A slot is one thread with one copy of the model. Asking for a job that is there attaches to it. A job nobody has watched
for its lease is stopped. Short calls (answers, commits) go before the queue, so that they wait for one job at most.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

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

    def status(self) -> EvaluationStatus:
        return EvaluationStatus(self.state, self.progress, self.outcome)


Work = Callable[[int, Job, Callable[[EvaluationProgress], None]], EvaluationOutcome]
"""Does a job in a slot; raises Cancelled when the job's `stop` is set."""


class Scheduler:
    """The queue and the slots of one student."""

    def __init__(self, work: Work, *, slots: int, max_queue: int, metrics: StudentMetrics) -> None:
        self._work, self._slots, self._max_queue, self._metrics = work, slots, max_queue, metrics
        self._changed = threading.Condition()
        self._queue: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[int], Any], Future[Any]]] = deque()
        self._active: dict[str, Job] = {}
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._busy = 0
        self._closed = False
        self._mean_seconds = 10.0
        self._threads = [
            threading.Thread(target=self._run, args=(slot,), name=f"slot-{slot}", daemon=True) for slot in range(slots)
        ]
        self._threads.append(threading.Thread(target=self._watch_leases, name="leases", daemon=True))
        self._measure()
        for thread in self._threads:
            thread.start()

    @property
    def free_slots(self) -> int:
        return max(0, self._slots - self._busy)

    @property
    def alive(self) -> bool:
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def submit(self, key: EvaluationKey, lease_s: float, watcher: Watcher | None = None) -> Job:
        """The job of this key: the one under way, or a new one at the end of the queue; Exhausted when that is full."""
        job_id = key.id
        with self._changed:
            if self._closed:
                raise Unavailable("the student is shutting down")
            job = self._active.get(job_id)
            if job is None:
                if len(self._queue) >= self._max_queue and self.free_slots <= len(self._queue):
                    retry = self._mean_seconds * max(1, len(self._queue)) / self._slots
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
                return False
            job.stopped_by = why
            job.stop.set()
            if job in self._queue:
                self._queue.remove(job)
                self._end(job, why, "cancelled", 0.0)
            return True

    def call(self, function: Callable[[int], T]) -> Future[T]:
        """Runs `function(slot)` on the next free slot, before any waiting evaluation."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise Unavailable("the student is shutting down")
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
            for _, future in self._calls:
                future.set_exception(Unavailable("the student is shutting down"))
            self._calls.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _run(self, slot: int) -> None:
        while True:
            with self._changed:
                while not (self._queue or self._calls or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
                call = self._calls.popleft() if self._calls else None
                job = None if call else self._queue.popleft()
                self._busy += 1
                if job is not None:
                    job.state = EvaluationState.RUNNING
                    self._metrics.queue_seconds.observe(time.monotonic() - job.queued_at)
                self._measure()
            try:
                if call is not None:
                    self._do_call(slot, *call)
                elif job is not None:
                    self._do_job(slot, job)
            finally:
                with self._changed:
                    self._busy -= 1
                    self._measure()

    def _do_call(self, slot: int, function: Callable[[int], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(slot))
        except Exception as error:
            future.set_exception(error)

    def _do_job(self, slot: int, job: Job) -> None:
        started = time.monotonic()
        outcome: EvaluationOutcome
        try:
            outcome = self._work(slot, job, lambda progress: self._progress(job, progress))
        except Cancelled:
            outcome = job.stopped_by or Failure("cancelled")
        except Exhausted as error:
            outcome = Failure(str(error), retryable=True)
        except Exception as error:
            # The process lives, and a fault of the machine is never a report.
            log.exception("evaluation %s failed", job.id)
            outcome = Failure(f"the evaluation crashed ({type(error).__name__})", retryable=True)
        seconds = time.monotonic() - started
        label = "report" if isinstance(outcome, EvaluationReport) else "rejected"
        if isinstance(outcome, Failure):
            label = "cancelled" if job.stop.is_set() else "failed"
        with self._changed:
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
        for watcher in job.watchers:
            watcher(outcome)
        self._measure()
        job.done.set()

    def _progress(self, job: Job, progress: EvaluationProgress) -> None:
        with self._changed:
            job.progress = progress
            for watcher in job.watchers:
                watcher(progress)

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
        self._metrics.slots.labels("busy").set(min(self._busy, self._slots))
        self._metrics.slots.labels("free").set(self.free_slots)
