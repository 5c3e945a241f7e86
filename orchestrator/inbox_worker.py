"""Works off one inbox: takes files in, begins batches in their windows, and writes down how they ended.

Each step reads the database and does one thing, so that a restart goes on wherever the rows stand. A batch is a run of
the orchestrator; its id follows from inbox, window and number, so that beginning it twice begins it once.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from orchestrator import inbox_metrics
from orchestrator.adapt_quiz import lacks_quiz, make_quizzes
from orchestrator.database import to_datetime
from orchestrator.engine import Engine
from orchestrator.inbox_config import InboxConfig
from orchestrator.inbox_ending import Decided, ending_of
from orchestrator.inbox_folder import take_in
from orchestrator.inbox_rows import Batch, Ending, InboxRows
from orchestrator.schedule import Begin, Waiting, Window, decide
from tutelage.documents import read_quiz
from tutelage.domain.errors import InvalidInput, TutelageError, Unavailable
from tutelage.domain.inbox import InboxDocumentState
from tutelage.domain.run import RunState
from tutelage.domain.task import Quiz

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between two looks at folder, clock and documents."""
RUN_LOOK_S = 1.0
"""Seconds between two looks at a batch under way."""
FAULT_S = 15.0
"""Seconds to wait after a fault."""
ENDED = {RunState.DONE.value, RunState.FAILED.value, RunState.CANCELLED.value}
_TASK = re.compile(r"tasks\[(\d+)\]")


def batch_run_id(inbox: str, window: Window) -> str:
    """Id of a window's next run."""
    return f"inbox-{inbox}-{window.start:%Y%m%dt%H%M}-{window.batches + 1}"


class InboxWorker:
    """One inbox; `wake` makes it look at once."""

    def __init__(
        self, name: str, config: InboxConfig, engine: Engine, rows: InboxRows, clock: Callable[[], datetime]
    ) -> None:
        self.name, self.config = name, config
        self._engine, self._rows, self._clock = engine, rows, clock
        self._woken = asyncio.Event()
        self._stuck: dict[Path, float] = {}

    def wake(self) -> None:
        """Something changed: look now."""
        self._woken.set()

    async def work(self) -> None:
        """For ever; a fault is logged and waited out."""
        while True:
            self._woken.clear()
            try:
                pause_s = await self.step()
                await self._count()
            except TutelageError as error:
                logger.warning("inbox %s: %s", self.name, error)
                pause_s = FAULT_S
            except Exception:
                logger.exception("inbox %s: internal fault", self.name)
                pause_s = FAULT_S
            try:
                await asyncio.wait_for(self._woken.wait(), pause_s)
            except TimeoutError:
                continue

    async def step(self) -> float:
        """Does the next thing there is to do; seconds until it is worth looking again."""
        if self.config.folder is not None:
            await take_in(
                self.config.folder,
                self.config.settle_s,
                self.config.made_questions > 0,
                lambda tasks, source: self._rows.submit(self.name, tasks, source),
                self._stuck,
            )
        batch = await self._rows.open_batch(self.name)
        if batch is not None:
            return await self._carry(batch)
        cost = self.config.evaluations_per_document
        keys = await self._rows.waiting(self.name, self.config.batch)
        last = await self._rows.last_window(self.name)
        now = self._clock()
        decision = decide(now, self.config.schedule(), last, False, [Waiting(key, cost) for key in keys])
        if isinstance(decision, Begin):
            if await self._asked(decision.keys):
                return 0.0
            run_id = batch_run_id(self.name, decision.window)
            if await self._rows.claim(self.name, run_id, decision):
                logger.info("inbox %s: run %s takes %d documents", self.name, run_id, len(decision.keys))
            return 0.0
        return max(0.0, min(LOOK_S, (decision.until - now).total_seconds()))

    async def _asked(self, keys: Sequence[str]) -> bool:
        """Makes the questions that are missing; False when there was nothing to be made."""
        unasked = [item for item in await self._rows.tasks(self.name, keys) if lacks_quiz(item)]
        if not unasked:
            return False
        settings = self._engine.settings
        made = await make_quizzes(
            self._engine.teacher,
            [item.task for item in unasked],
            self.config.made_questions,
            self.config.seed,
            self.config.made_check,
            describe_timeout_s=settings.describe_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            retry=settings.retry,
        )
        least = self.config.least_questions
        for item, each in zip(unasked, made, strict=True):
            count = len(each.quiz.questions)
            if count >= least:
                await self._rows.give_quiz(self.name, replace(item, quiz=each.quiz))
            else:
                why = f"{count} questions could be made that its text answers, at least {least} are needed"
                await self._rows.give_up(self.name, item.task.id, f"{why} ({each.told})" if each.told else why)
        return True

    async def _carry(self, batch: Batch) -> float:
        """A batch under way: begin its run, wait for it, or write down how it ended."""
        state = await self._rows.run_state(batch.run_id)
        if state is None:
            return await self._start(batch)
        if state not in ENDED:
            return RUN_LOOK_S
        await self._settle(batch)
        return 0.0

    async def _start(self, batch: Batch) -> float:
        path = self.config.retention_quiz
        quiz = await asyncio.to_thread(read_quiz, path) if path is not None else Quiz()
        try:
            await self._engine.start_run(batch.run_id, self.config.run_yaml(f"inbox {self.name}"), batch.tasks, quiz)
        except Unavailable as error:
            closes = to_datetime(batch.window_start) + self.config.schedule().window
            if self._clock() < closes:
                logger.warning("inbox %s: %s", self.name, error)
                return FAULT_S
            # The run may be there although the call broke, or by another orchestrator: then it is waited for.
            await self._rows.settle(batch, 0, _all(batch, InboxDocumentState.WAITING, str(error)), begun=False)
        except InvalidInput as error:
            logger.error("inbox %s: run %s is refused: %s", self.name, batch.run_id, error)
            await self._rows.settle(batch, 0, self._refused(batch, error), begun=False)
        return 0.0

    def _refused(self, batch: Batch, error: InvalidInput) -> dict[str, Ending]:
        """Documents that are named are given up; without any, the recipe is wrong, and all wait for another try."""
        named = {int(found[1]) for item in error.violations if (found := _TASK.match(item.field))}
        guilty = {batch.tasks[index].task.id for index in named if index < len(batch.tasks)}
        endings = {}
        for task_id, before in batch.attempts.items():
            if task_id in guilty:
                endings[task_id] = Ending(InboxDocumentState.FAILED, before, str(error))
            elif guilty:
                endings[task_id] = Ending(InboxDocumentState.WAITING, before, "")
            else:
                spent = before + 1 >= self.config.attempts
                state = InboxDocumentState.FAILED if spent else InboxDocumentState.WAITING
                endings[task_id] = Ending(state, before + 1, str(error))
        return endings

    async def _settle(self, batch: Batch) -> None:
        store = self._engine.store
        run = await store.run(batch.run_id)
        evaluations = await store.evaluations(batch.run_id)
        decided = [
            Decided(
                row["student"], row["task_id"], bool(row["committed"]), bool(row["candidate_id"]), bool(row["fault"])
            )
            for row in await store.commits(batch.run_id)
        ]
        faulty = {(row.student, row.task_id) for row in evaluations if row.state == "failed"}
        reason = f"run {run.run_id} {run.state.value}" + (f", {run.message}" if run.message else "")
        endings = ending_of(batch, run.config.students, decided, faulty, self.config.attempts, reason)
        spent = sum(row.final for row in evaluations)
        if await self._rows.settle(batch, spent, endings):
            inbox_metrics.EVALUATIONS.labels(self.name).inc(spent)
            logger.info("inbox %s: run %s ended, %d evaluations", self.name, batch.run_id, spent)

    async def _count(self) -> None:
        for state, count in (await self._rows.counts(self.name)).items():
            inbox_metrics.DOCUMENTS.labels(self.name, state).set(count)


def _all(batch: Batch, state: InboxDocumentState, message: str) -> dict[str, Ending]:
    return {task_id: Ending(state, attempts, message) for task_id, attempts in batch.attempts.items()}


def utc_now() -> datetime:
    """The clock on the wall."""
    return datetime.now(UTC)
