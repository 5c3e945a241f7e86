"""Drives one run: executes the machine's decisions, stores each result first and then feeds it to the machine.

Everything is rebuilt from the store's rows, so stopping a runner at any moment and starting another goes on where the
rows end. Evaluations wait in one queue and start as far as their students' slots reach.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from orchestrator import metrics
from orchestrator.committing import Committer
from orchestrator.config import OrchestratorSettings
from orchestrator.dispatch import assign
from orchestrator.evaluating import Evaluator, evaluation_key, round_seed
from orchestrator.machine import (
    Commit,
    CommitDecided,
    Decision,
    Evaluate,
    Evaluated,
    Fact,
    FinishRun,
    GroupWritten,
    PolicyUpdated,
    Progress,
    RunEnded,
    UpdatePolicy,
    WriteGroup,
    apply,
    begin,
    outstanding,
    phase,
    step,
)
from orchestrator.records import Run, StoredCandidate
from orchestrator.store import Store
from orchestrator.student_rows import StudentRows
from orchestrator.students import Students
from orchestrator.teaching import Teaching
from tutelage.client import TeacherClient
from tutelage.domain.canonical import content_hash
from tutelage.domain.errors import TutelageError
from tutelage.domain.run import RunPhase, RunState
from tutelage.domain.self_edit import SelfEdit
from tutelage.rpc.logging import bind

logger = logging.getLogger(__name__)

CANCEL_S = 5.0
"""Seconds a student has to say that it stops an evaluation of a cancelled run."""


async def rebuild(run: Run, store: Store) -> Progress:
    """The machine's state from the store's rows."""
    facts: list[tuple[tuple[int, int], Fact]] = []
    groups: dict[tuple[int, str], list[str | None]] = {}
    for stored in await store.candidates(run.run_id):
        groups.setdefault((stored.round, stored.task_id), []).append(stored.edit)
    facts += [((round_, 0), GroupWritten(round_, task, tuple(edits))) for (round_, task), edits in groups.items()]
    for row in await store.evaluations(run.run_id):
        if row.final and row.phase == "round":
            work = Evaluate(row.round, row.task_id, row.edit, row.student, row.repeat)
            facts.append(((row.round, 1), Evaluated(work, row.reward)))
    facts += [((item.round, 2), PolicyUpdated(item.round, item.version)) for item in await store.updates(run.run_id)]
    commits = await store.commits(run.run_id)
    facts += [((run.config.rounds + 1, 0), CommitDecided(row["student"], row["task_id"])) for row in commits]
    now = begin(run.policy_version)
    for _, fact in sorted(facts, key=lambda item: item[0]):
        now = apply(run.plan, now, fact)
    return now if run.state is RunState.RUNNING else apply(run.plan, now, RunEnded(run.state))


class Runner:
    """One run under way."""

    def __init__(
        self, run: Run, store: Store, students: Students, teacher: TeacherClient, settings: OrchestratorSettings
    ) -> None:
        self.run = run
        self._store = store
        self._students = students
        self._settings = settings
        self._rows = StudentRows(store.engine)
        self._evaluator = Evaluator(run, store, students, settings.retry, settings.lease_s)
        self._teaching = Teaching(run, store, teacher, settings)
        self._committer = Committer(self._evaluator, self._rows, settings)
        self._facts: asyncio.Queue[Fact | BaseException | None] = asyncio.Queue()
        self._waiting: dict[Evaluate, None] = {}
        self._under_way: dict[Evaluate, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers = asyncio.Semaphore(settings.writers)
        self._edits: dict[tuple[int, str, str], tuple[SelfEdit, list[str]]] = {}
        self._now = begin(run.policy_version)

    @property
    def phase(self) -> RunPhase:
        """What the run is doing."""
        return phase(self.run.plan, self._now)

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return self._now

    async def drive(self) -> None:
        """Until the run has ended; cancelling leaves it to be resumed."""
        bind(run_id=self.run.run_id)
        stop_listening = self._students.listen(lambda: self._facts.put_nowait(None))
        try:
            self._remember(await self._store.candidates(self.run.run_id))
            self._now = await rebuild(self.run, self._store)
            for name, student in self.run.students.items():
                self._students.set_slots(name, student.description.slots)
            self._begin(outstanding(self.run.plan, self._now))
            while self._now.state is RunState.RUNNING:
                self._dispatch()
                fact = await self._facts.get()
                if isinstance(fact, BaseException):
                    await self._fail(fact)
                elif fact is not None:
                    self._now, decisions = step(self.run.plan, self._now, fact)
                    self._begin(decisions)
        except Exception as error:
            await self._fail(error)
        finally:
            stop_listening()
            await self._stop_tasks()

    async def cancel_evaluations(self) -> None:
        """Asks the students to stop what they are evaluating for this run; best effort."""
        asked = [
            asyncio.wait_for(self._students.client(work.student).cancel_evaluation(evaluation_id), CANCEL_S)
            for work, evaluation_id in self._under_way.items()
        ]
        await asyncio.gather(*asked, return_exceptions=True)

    async def _fail(self, error: BaseException) -> None:
        known = isinstance(error, TutelageError)
        logger.error("the run failed: %s", error, exc_info=None if known else error)
        message = str(error) if known else f"internal fault: {type(error).__name__}"
        await self._store.end_run(self.run.run_id, RunState.FAILED, message)
        self._now = apply(self.run.plan, self._now, RunEnded(RunState.FAILED))

    async def _stop_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        metrics.PENDING.dec(len(self._waiting))
        self._waiting.clear()
        # A task that was cancelled before its first step released nothing.
        for left in list(self._under_way):
            self._release(left)

    def _begin(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Evaluate():
                    self._waiting[decision] = None
                    metrics.PENDING.inc()
                case WriteGroup():
                    self._spawn(self._write(decision))
                case UpdatePolicy():
                    self._spawn(self._update(decision))
                case Commit():
                    self._spawn(self._commit(decision))
                case FinishRun():
                    self._spawn(self._finish())

    def _dispatch(self) -> None:
        for work in assign(self._waiting, self._students.free()):
            del self._waiting[work]
            self._under_way[work] = ""
            self._students.take(work.student)
            self._spawn(self._evaluate(work))

    def _spawn(self, work: Coroutine[Any, Any, Fact]) -> None:
        async def feed() -> None:
            try:
                self._facts.put_nowait(await work)
            except Exception as error:
                self._facts.put_nowait(error)

        task = asyncio.create_task(feed())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: work.close())

    def _remember(self, written: Sequence[StoredCandidate]) -> None:
        for stored in written:
            if stored.edit is not None and isinstance(stored.candidate.result, SelfEdit):
                known = self._edits.setdefault(
                    (stored.round, stored.task_id, stored.edit), (stored.candidate.result, [])
                )
                if stored.id not in known[1]:
                    known[1].append(stored.id)

    async def _write(self, decision: WriteGroup) -> Fact:
        async with self._writers:
            written = await self._teaching.write(decision)
        self._remember(written)
        return GroupWritten(decision.round, decision.task, tuple(stored.edit for stored in written))

    async def _evaluate(self, work: Evaluate) -> Fact:
        try:
            edit, candidate_ids = self._edits[(work.round, work.task, work.edit)]
            over = self.run.students[work.student].adapter_version
            key = evaluation_key(self.run, work, edit, over, round_seed(self.run, work))
            self._under_way[work] = key.id
            stored = await self._evaluator.evaluate(work, key, "round", candidate_ids)
        finally:
            self._release(work)
        return Evaluated(work, stored.reward)

    def _release(self, work: Evaluate) -> None:
        if self._under_way.pop(work, None) is not None:
            metrics.PENDING.dec()
            self._students.give(work.student)

    async def _update(self, decision: UpdatePolicy) -> Fact:
        stored = await self._teaching.update(decision, self._now)
        return PolicyUpdated(decision.round, stored.version)

    async def _commit(self, decision: Commit) -> Fact:
        run_id = self.run.run_id
        evaluations = await self._store.evaluations(run_id, student=decision.student)
        candidates = {stored.id: stored for stored in await self._store.candidates(run_id)}
        await self._committer.commit(decision, evaluations, candidates)
        return CommitDecided(decision.student, decision.task)

    async def _finish(self) -> Fact:
        await self._store.end_run(self.run.run_id, RunState.DONE, "")
        return RunEnded(RunState.DONE)


def run_hash(config_yaml: str, tasks: object, retention_quiz: object) -> str:
    """What tells a run's content from another's."""
    return content_hash([config_yaml, tasks, retention_quiz])
