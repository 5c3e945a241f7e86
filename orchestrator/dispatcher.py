"""Carries out what dispatch decides: calls replicas, asks how they are, looks up where they are, keeps the time."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from orchestrator import metrics
from orchestrator.config import OrchestratorSettings
from orchestrator.dispatch import Dispatch
from orchestrator.dispatch_decisions import Again, Decision, Fault, GiveUp, Limits, Probe, Rules, Start, Stop
from orchestrator.students import NO_REPLICA, Students
from tutelage.client import StudentClient
from tutelage.domain.errors import (
    AlreadyExists,
    DataLoss,
    Exhausted,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    TutelageError,
    Unavailable,
)
from tutelage.domain.evaluation import EvaluationOutcome, Failure
from tutelage.rpc.logging import bind

logger = logging.getLogger(__name__)

FINAL = (InvalidInput, AlreadyExists)
"""Faults of the request itself: no replica will take it."""
REFUSED = (NotFound, PreconditionFailed, DataLoss)
"""Faults of a replica that has not what the request needs; another one may have it."""

Call = Callable[[StudentClient, float], Awaitable[EvaluationOutcome]]
"""Asks a replica, within seconds; raises the domain's errors."""


@dataclass(eq=False)
class Work:
    """An evaluation to be done by any replica of a student."""

    student: str
    call: Call
    limits: Limits
    owner: str
    """The run it is done for."""
    rank: tuple[int, ...] = ()
    attempts: int = 0
    """Made so far, those before a restart included."""
    age_s: float | None = None
    """Seconds since its first start, of one that was begun before a restart."""
    started: Callable[[], None] = lambda: None
    """Told of each start of an attempt."""
    stopped: Callable[[], None] = lambda: None
    """Told of each end of an attempt."""
    evaluation_id: str = ""
    """For logs only."""
    again: Callable[[Again], None] = lambda _: None
    """Told of each failed attempt that will be made again."""
    done: asyncio.Future[tuple[EvaluationOutcome, str]] = field(init=False)
    """The outcome and the address of the replica that gave it."""


class Dispatcher:
    """One for all runs of an orchestrator."""

    def __init__(self, students: Students, settings: OrchestratorSettings) -> None:
        retry, own = settings.retry, settings.dispatch
        self.students, self.retry = students, retry
        self._resolve_s = own.resolve_s
        self._dispatch = Dispatch(
            Rules(retry.initial_s, retry.factor, retry.maximum_s, own.set_aside_after, own.retry_budget, own.report_s)
        )
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._others: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._listeners: set[Callable[[str], None]] = set()
        self._closed = False

    async def start(self) -> None:
        """Begins to look for the replicas of all students."""
        self._loop = asyncio.get_running_loop()
        # What is done here for one run is often begun by the end of another's: neither works under the other's ids.
        self._context = contextvars.copy_context()
        for name in self.students.settings:
            self._background(self._follow(name))

    async def close(self) -> None:
        """Ends everything; students go on for their leases."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [*self._attempts.values(), *self._others]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def run(self, work: Work) -> tuple[EvaluationOutcome, str]:
        """The final outcome and who gave it (nobody for what was given up). Cancelling detaches."""
        work.done = self._loop.create_future()
        self._apply(
            self._dispatch.submit(
                work,
                work.student,
                work.limits,
                self._loop.time(),
                owner=work.owner,
                rank=work.rank,
                attempts=work.attempts,
                age_s=work.age_s,
            )
        )
        try:
            return await work.done
        finally:
            self._apply(self._dispatch.withdraw(work, self._loop.time()))

    def give_up(self, work: Work, reason: str) -> None:
        """Ends work that has not ended as a failure."""
        if not work.done.done():
            work.done.set_result((Failure(reason, retryable=False), ""))

    def wanted(self, student: str) -> None:
        """Asks the student at once whether it is there, if it was away: a run begins to work with it."""
        self._apply(self._dispatch.wanted(student))

    def slots(self, student: str) -> int:
        """Slots of the student's replicas that may get work."""
        return self._dispatch.slots(student)

    def free(self, student: str) -> int:
        """Free slots of the student's replicas."""
        return self._dispatch.free(student, self._loop.time())

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Calls the listener with a student's name when its slots may have changed, until the result is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, context=self._context.copy())
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _follow(self, name: str) -> None:
        known: set[str] = set()
        while True:
            try:
                addresses = await self.students.refresh(name)
            except TutelageError as error:
                # The replicas that are known stay: a name server may be away for a while.
                logger.warning("student %s: %s", name, error)
            else:
                self._apply(self._dispatch.listed(name, addresses, self._loop.time()))
                now = set(self._dispatch.students[name].replicas)
                # Also those that were left with work then, and have ended it since.
                for address in known - now:
                    await self.students.forget(name, address)
                known = now
                if not addresses:
                    # Nobody is left whose silence would tell.
                    self.students.seen(name, False, NO_REPLICA)
                self._tell(name)
            await asyncio.sleep(self._resolve_s)

    async def _probe(self, student: str, address: str) -> None:
        why = NO_REPLICA
        try:
            described = await self.students.replica(student, address).describe(
                timeout_s=self.students.describe_timeout_s
            )
        except Exception as error:
            # Whatever it was, a replica that is never asked again would be lost.
            why = str(error) or type(error).__name__
            log = logger.debug if isinstance(error, TutelageError) else logger.exception
            log("student %s at %s: %s", student, address, error)
            self._apply(self._dispatch.unreachable(student, address, self._loop.time()))
        else:
            now = self._loop.time()
            self._apply(self._dispatch.reported(student, address, described.slots, described.free_slots, now))
        self.students.seen(student, self._dispatch.slots(student) > 0, why)
        self._tell(student)

    def _tell(self, student: str) -> None:
        for listener in list(self._listeners):
            listener(student)

    def _apply(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Start(job, address, attempt, timeout_s):
                    assert isinstance(job, Work)
                    attempt_ = self._attempt(job, address, attempt, timeout_s)
                    task = asyncio.create_task(attempt_, context=self._context.copy())
                    # Also told of a task that is cancelled before its first step.
                    task.add_done_callback(lambda _, stopped=job.stopped: stopped())  # type: ignore[misc]
                    self._attempts[attempt] = task
                    job.started()
                case Stop(attempt):
                    task_ = self._attempts.pop(attempt, None)
                    if task_ is not None:
                        task_.cancel()
                        self._background(_ended(task_))
                case Again(job, _, wait_s, reason):
                    assert isinstance(job, Work)
                    with bind(run_id=job.owner, evaluation_id=job.evaluation_id):
                        logger.warning("student %s: %s; again in %.1f s", job.student, reason, wait_s)
                    metrics.RETRIES.labels("student").inc()
                    job.attempts = decision.attempts
                    job.again(decision)
                case GiveUp(job, attempts, reason):
                    assert isinstance(job, Work)
                    job.attempts = attempts
                    self.give_up(job, reason)
                case Probe(student, address):
                    self._background(self._probe(student, address))
        self._wake()

    def _wake(self) -> None:
        at = self._dispatch.wake_at()
        if self._timer is not None:
            if at is not None and self._timer.when() <= at:
                return
            self._timer.cancel()
        self._timer = None if at is None or self._closed else self._loop.call_at(at, self._tick, context=self._context)

    def _tick(self) -> None:
        self._timer = None
        self._apply(self._dispatch.tick(self._loop.time()))

    async def _attempt(self, work: Work, address: str, attempt: int, timeout_s: float) -> None:
        bind(run_id=work.owner, evaluation_id=work.evaluation_id)
        outcome = await self._asked(work, address, timeout_s)
        self._attempts.pop(attempt, None)
        now = self._loop.time()
        if isinstance(outcome, tuple):
            fault, reason, wait_s = outcome
            metrics.WORKERS_LOST.labels(fault.value).inc()
            self._apply(self._dispatch.failed(attempt, fault, reason, now, wait_s))
            return
        self.students.seen(work.student, True)
        if not work.done.done():
            work.attempts += 1
            work.done.set_result((outcome, address))
        self._apply(self._dispatch.ended(attempt, now))

    async def _asked(
        self, work: Work, address: str, timeout_s: float
    ) -> EvaluationOutcome | tuple[Fault, str, float | None]:
        """The final outcome, or what kind of fault it was, why, and what wait the replica asked for."""
        who = f"student {work.student!r}"
        try:
            outcome = await work.call(self.students.replica(work.student, address), timeout_s)
        except FINAL as error:
            return Failure(f"{type(error).__name__}: {error}", retryable=False)
        except REFUSED as error:
            return Fault.REFUSED, f"{type(error).__name__}: {error}", None
        except Unavailable as error:
            return Fault.LOST, f"{who}: {error}", error.retry_after_s
        except Exhausted as error:
            return Fault.FULL, f"{who}: {error}", error.retry_after_s
        except TutelageError as error:
            return Fault.FAILED, f"{who}: {error}", None
        except asyncio.CancelledError:
            raise
        except Exception as error:
            logger.exception("an evaluation broke on this side")
            return Fault.FAILED, f"internal fault: {type(error).__name__}", None
        if isinstance(outcome, Failure) and outcome.retryable:
            return Fault.FULL if outcome.exhausted else Fault.FAILED, f"{who}: {outcome.message}", None
        return outcome


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.gather(task, return_exceptions=True)
