"""Drives one run: executes the machine's decisions, stores each result first and then feeds it to the machine.

Everything is rebuilt from the store's rows, so stopping a runner at any moment and starting another goes on where the
rows end. Which evaluations the dispatcher gets, and when, is decided in `handing_out`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from orchestrator import metrics
from orchestrator.closing import Closing
from orchestrator.committing import Committer
from orchestrator.config import OrchestratorSettings
from orchestrator.dispatcher import Dispatcher
from orchestrator.evaluating import Asked, Evaluator, Watching
from orchestrator.evaluation_keys import RoundKeys
from orchestrator.group_closing import GroupClosing
from orchestrator.handing_out import HandingOut
from orchestrator.judging import Judges
from orchestrator.leasing import EndedElsewhere, Lease, LeaseLost
from orchestrator.ledger import Ledger
from orchestrator.machine import Machine
from orchestrator.open_work import OpenWork
from orchestrator.plan import Group
from orchestrator.rebuilding import rebuild
from orchestrator.records import Pending, Run
from orchestrator.retrying import Paused
from orchestrator.run_events import (
    Commit,
    CommitDecided,
    Decision,
    Evaluate,
    Evaluated,
    Fact,
    FinishRun,
    GroupWritten,
    PolicyUpdated,
    RunEnded,
    UpdatePolicy,
    WriteGroup,
)
from orchestrator.store import Store
from orchestrator.store_fault import StoreFault
from orchestrator.student_rows import StudentRows
from orchestrator.tally import RunningTally
from orchestrator.teaching import Teaching
from orchestrator.utilisation import TEACHER, Utilisation, student
from orchestrator.written_edits import WrittenEdits
from tutelage.client import TeacherClient
from tutelage.domain.errors import TutelageError
from tutelage.domain.run import RunState
from tutelage.rpc.logging import bind

logger = logging.getLogger(__name__)

STORE_FAULTS = (StoreFault, SQLAlchemyError, LeaseLost, OSError)
"""The database is away or refuses; what is stored stands, and the run can be driven on from there."""


class Runner:
    """One run under way."""

    def __init__(
        self,
        run: Run,
        lease: Lease,
        store: Store,
        dispatcher: Dispatcher,
        teacher: TeacherClient,
        settings: OrchestratorSettings,
        judges: Judges,
    ) -> None:
        self.run, self.lease = run, lease
        self._store = store.fenced(lease.run_id, lease.epoch)
        self._dispatcher, self._settings = dispatcher, settings
        self._ledger = Ledger(self._store, run.run_id)
        self._paused = asyncio.Event()
        lease_s, paused = settings.lease_s, self._paused
        self._evaluator = Evaluator(run, self._store, dispatcher, self._ledger, lease_s, judges, paused)
        self._teaching = Teaching(run, self._store, teacher, settings, paused)
        self._committer = Committer(self._evaluator, StudentRows(store.engine), settings)
        self._keys = RoundKeys(run)
        self._policy = run.config.group_policy()
        self._work = OpenWork()
        self._handing_out = HandingOut(run.plan.students, dispatcher.slots)
        self._asked: dict[Evaluate, Asked | None] = {}
        self._groups = GroupClosing(self._policy, self._not_needed)
        self._evaluating: dict[Evaluate | Commit, asyncio.Task[None]] = {}
        self._commits: dict[Commit, Asked] = {}
        """What is evaluated once more for a commit."""
        self._used = Utilisation(self._store, run.run_id)
        self._writers = asyncio.Semaphore(settings.writers)
        self._edits = WrittenEdits(run)
        self._before: dict[tuple[str, str], Pending] = {}
        self.restored = False
        """Whether machine and tally stand where the store stands."""
        self.machine = Machine(run.plan, run.policy_version)
        self.tally = RunningTally((), ())

    async def drive(self) -> None:
        """Until the run has ended or was paused; cancelling leaves it to be resumed.

        LeaseLost when another orchestrator has it or has ended it; a database's errors are raised, and the rows stand.
        """
        bind(run_id=self.run.run_id)
        stop_listening = self._dispatcher.listen(self._room_changed)
        try:
            await self._restore()
            self._work.aside(self._used.write_regularly())
            self._begin(self.machine.outstanding())
            self._groups.start(self.machine, self._tried)
            while self.machine.state is RunState.RUNNING and (self._work.any or not self._work.pausing):
                self._hand_out()
                fact = await self._work.next_fact()
                if fact is not None:
                    self._begin(self.machine.feed(fact))
                    if isinstance(fact, Evaluated):
                        self._groups.look(self.machine.group_of(fact.work))
        except EndedElsewhere:
            # Whoever ended it may know nothing of those who evaluate for it.
            await self.cancel_evaluations()
            raise
        except STORE_FAULTS:
            raise
        except Exception as error:
            await self._fail(error)
        finally:
            stop_listening()
            await self._stop_tasks()

    def pause(self) -> None:
        """Starts nothing new, and tries nothing again; `drive` ends when what students and teacher are at has ended."""
        self._work.pausing = True
        self._paused.set()
        metrics.PENDING.dec(self._handing_out.waiting)
        self._handing_out.clear()
        for work in list(self._evaluating):
            self._stop_idle(work)
        self._work.wake()

    def _stop_idle(self, work: Evaluate | Commit) -> None:
        """Ends what no student has now: asked for again it goes on where it stood."""
        asked = self._commits.get(work) if isinstance(work, Commit) else self._asked.get(work)
        task = self._evaluating.get(work)
        if task is not None and (asked is None or not asked.running):
            task.cancel()

    async def cancel_evaluations(self) -> None:
        """Begins nothing more, and asks the students to stop what they are evaluating for this run; best effort."""
        self.pause()
        running = [asked for asked in self._asked.values() if asked is not None and asked.running]
        await asyncio.gather(*(self._cancel(asked) for asked in running), return_exceptions=True)

    async def _cancel(self, asked: Asked) -> None:
        await self._dispatcher.students.cancel_evaluation(asked.work.student, asked.evaluation_id)

    async def _restore(self) -> None:
        run_id = self.run.run_id
        self._edits.remember(await self._store.candidates(run_id))
        self.machine = await rebuild(self.run, self._store)
        self._before = await self._store.pending(run_id)
        seconds = [each for _, _, _, each in await self._store.ended(run_id)]
        self.tally = RunningTally(await self._store.reward_states(run_id), seconds)
        self.restored = True
        if self._policy.close is Closing.FAIL_FAST:
            failed = await self._store.first_failed(run_id)
            if failed is not None:
                raise _given_up(*failed)
        self._used.room(TEACHER, 1)
        for name in self.run.plan.students:
            self._dispatcher.wanted(name)
            self._room_changed(name)

    async def _fail(self, error: BaseException) -> None:
        known = isinstance(error, TutelageError)
        logger.error("the run failed: %s", error, exc_info=None if known else error)
        message = str(error) if known else f"internal fault: {type(error).__name__}"
        # Ended first: an evaluation that is cancelled for this must not be stored as one that failed, for a failed run
        # can be resumed.
        await self._store.end_run(self.run.run_id, RunState.FAILED, message)
        await self.cancel_evaluations()
        self.machine.feed(RunEnded(RunState.FAILED))

    async def _stop_tasks(self) -> None:
        self._groups.stop()
        await self._work.stop()
        metrics.PENDING.dec(self._handing_out.waiting + len(self._asked))
        self._asked.clear()
        await self._ledger.close()
        await self._used.write()

    # Decisions.

    def _begin(self, decisions: Sequence[Decision]) -> None:
        if self._work.pausing:
            return
        for decision in decisions:
            match decision:
                case Evaluate():
                    self._handing_out.add(decision)
                    metrics.PENDING.inc()
                case WriteGroup():
                    self._work.begin(self._write(decision.group))
                case UpdatePolicy():
                    self._work.begin(self._update(decision))
                case Commit():
                    self._evaluating[decision] = self._work.begin(self._commit(decision))
                case FinishRun():
                    self._work.begin(self._finish())

    def _hand_out(self) -> None:
        for work in self._handing_out.next():
            if work in self.machine.results or work in self._asked:
                self._handing_out.ended(work)
                metrics.PENDING.dec()
                continue
            self._asked[work] = None
            self._evaluating[work] = self._work.begin(self._evaluate(work))

    def _room_changed(self, name: str) -> None:
        if name in self.run.students:
            self._used.room(student(name), self._dispatcher.slots(name))
            self._handing_out.look_at(name)
            self._work.wake()

    # What is done for a decision.

    async def _write(self, group: Group) -> Fact:
        async with self._writers:
            if self._work.pausing:
                raise Paused
            with self._used.busy(TEACHER):
                # The newest policy, which may be newer than when this was decided.
                written = await self._teaching.write(group, self.machine.policy_version)
        self._edits.remember(written)
        plan = self.run.plan
        for stored in written:
            if stored.edit is None:
                self.tally.rejected(stored.id, plan.readers(group.audience), plan.repeats, plan.rejected_reward)
        return GroupWritten(group, tuple(stored.edit for stored in written))

    async def _evaluate(self, work: Evaluate) -> Fact:
        edit, candidate_ids = self._edits.of(work, self.machine.group_of(work))
        key, evaluation_id = self._keys.of(work, edit)
        bind(evaluation_id=evaluation_id)
        actor = student(work.student)
        watching = Watching(
            asked=self._under_way,
            started=lambda _: self._used.start(actor),
            stopped=lambda _: self._used.stop(actor),
            failed=self._attempt_failed,
            answered=self._has_answered,
        )
        try:
            stored = await self._evaluator.evaluate(
                work, key, "round", candidate_ids, evaluation_id=evaluation_id, known=self._before, watching=watching
            )
        finally:
            self._groups.ended(work)
            self._evaluating.pop(work, None)
            del self._asked[work]
            self._handing_out.ended(work)
            metrics.PENDING.dec()
        self.tally.ended(candidate_ids, work.student, stored.state, stored.reward, stored.seconds)
        if stored.state == "failed" and self._policy.close is Closing.FAIL_FAST:
            raise _given_up(stored.evaluation_id, work.task, stored.reason)
        return Evaluated(work, stored.reward, stored.state == "rejected")

    async def _update(self, decision: UpdatePolicy) -> Fact:
        with self._used.busy(TEACHER):
            stored = await self._teaching.update(decision, self.machine)
        return PolicyUpdated(decision.round, stored.version)

    async def _commit(self, decision: Commit) -> Fact:
        run_id = self.run.run_id
        evaluations = await self._store.evaluations(run_id, student=decision.student, task_id=decision.task)
        candidates = {stored.id: stored for stored in await self._store.candidates(run_id, task_id=decision.task)}

        def asked(one: Asked) -> None:
            self._commits[decision] = one
            failed(one)

        def failed(_: Asked) -> None:
            if self._work.pausing:
                self._stop_idle(decision)

        try:
            await self._committer.commit(decision, evaluations, candidates, Watching(asked=asked, failed=failed))
        finally:
            self._evaluating.pop(decision, None)
            self._commits.pop(decision, None)
        return CommitDecided(decision.student, decision.task)

    async def _finish(self) -> Fact:
        await self._used.write()
        await self._store.end_run(self.run.run_id, RunState.DONE, "")
        return RunEnded(RunState.DONE)

    # What is given up.

    def _under_way(self, asked: Asked) -> None:
        self._asked[asked.work] = asked
        self._groups.under_way(asked.work)

    def _has_answered(self, asked: Asked) -> None:
        self._handing_out.answered(asked.work)
        self._work.wake()

    def _attempt_failed(self, asked: Asked) -> None:
        if self._work.pausing:
            self._stop_idle(asked.work)
        self._groups.attempt_failed(asked.work)

    def _tried(self, work: Evaluate, group: Group) -> bool:
        """Whether an attempt at it had failed before this runner."""
        _, evaluation_id = self._keys.of(work, self._edits.of(work, group)[0])
        return self._before.get((evaluation_id, work.student), Pending()).attempts > 0

    def _not_needed(self, work: Evaluate, reason: str) -> None:
        asked = self._asked.get(work)
        if asked is not None:
            if asked.running:
                self._work.aside(self._cancel(asked))
            self._dispatcher.give_up(asked.given, reason)
            asked.give_up_judging(reason)
        elif work not in self._asked:
            self._asked[work] = None
            self._work.begin(self._give_up(work, reason))

    async def _give_up(self, work: Evaluate, reason: str) -> Fact:
        """Ends an evaluation that no student was asked for yet."""
        edit, candidate_ids = self._edits.of(work, self.machine.group_of(work))
        key, evaluation_id = self._keys.of(work, edit)
        attempts = self._before.get((evaluation_id, work.student), Pending()).attempts
        stored = await self._evaluator.give_up(
            work, evaluation_id, key.adapter_version, candidate_ids, reason, attempts
        )
        del self._asked[work]
        self.tally.ended(candidate_ids, work.student, stored.state, stored.reward, stored.seconds)
        return Evaluated(work, stored.reward, stored.state == "rejected")


def _given_up(evaluation_id: str, task: str, reason: str) -> TutelageError:
    return TutelageError(f"evaluation {evaluation_id[:12]} of task {task!r} failed: {reason}")
