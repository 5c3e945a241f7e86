"""All inboxes of an orchestrator: documents come in, workers run beside the engine, and lists say how far they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from orchestrator import inbox_metrics
from orchestrator.adapt_quiz import submission_violations
from orchestrator.engine import Engine
from orchestrator.inbox_config import MOST_DOCUMENTS, InboxConfig
from orchestrator.inbox_rows import InboxRows
from orchestrator.inbox_worker import InboxWorker, utc_now
from orchestrator.schedule import next_opening, open_since
from tutelage.documents import read_quiz
from tutelage.domain.errors import FieldViolation, InvalidInput, NotFound
from tutelage.domain.inbox import Inbox, InboxDocument, InboxDocumentState
from tutelage.domain.run import TaskWithQuiz


class Inboxes:
    """What the service asks of inboxes, without gRPC."""

    def __init__(
        self, engine: Engine, configs: Mapping[str, InboxConfig], clock: Callable[[], datetime] = utc_now
    ) -> None:
        self._engine, self._configs, self._clock = engine, configs, clock
        self._workers: dict[str, InboxWorker] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Starts the workers, after the engine; InvalidInput when a retention quiz cannot be read."""
        self.rows = InboxRows(self._engine.store.engine)
        inbox_metrics.initialise(self._configs)
        for name, config in self._configs.items():
            if config.retention_quiz is not None:
                await asyncio.to_thread(read_quiz, config.retention_quiz)
            self._workers[name] = InboxWorker(name, config, self._engine, self.rows, self._clock)
        self._tasks = [asyncio.create_task(worker.work()) for worker in self._workers.values()]

    async def stop(self) -> None:
        """Stops the workers, before the engine; batches under way go on at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _config(self, name: str) -> InboxConfig:
        if name not in self._configs:
            raise NotFound("inbox", name, "known: " + (", ".join(sorted(self._configs)) or "none"))
        return self._configs[name]

    async def submit(
        self, name: str, tasks: Sequence[TaskWithQuiz], wrong: Sequence[FieldViolation] = ()
    ) -> tuple[int, int]:
        """Takes documents in, all or none: how many are new, how many were there. `wrong` was found in them before."""
        config = self._config(name)
        found = [*wrong] or submission_violations(tasks, config.made_questions > 0)
        if len(tasks) > MOST_DOCUMENTS:
            found.append(FieldViolation("tasks", f"{len(tasks)} documents", f"at most {MOST_DOCUMENTS} at once"))
        if found:
            raise InvalidInput(found)
        new = await self.rows.submit(name, tasks, "submitted")
        self._workers[name].wake()
        return new, len(tasks) - new

    async def inboxes(self) -> list[Inbox]:
        """All of them, by name."""
        return [await self.inbox(name) for name in sorted(self._configs)]

    async def inbox(self, name: str) -> Inbox:
        """One; NotFound names those there are."""
        config = self._config(name)
        schedule, now = config.schedule(), self._clock()
        counts = await self.rows.counts(name)
        batch = await self.rows.open_batch(name)
        last = await self.rows.last_window(name)
        opened = open_since(schedule, now)
        return Inbox(
            name=name,
            students=config.students,
            cron=config.cron,
            time_zone=config.time_zone,
            budget=config.budget,
            waiting=counts[InboxDocumentState.WAITING],
            working=counts[InboxDocumentState.WORKING],
            done=counts[InboxDocumentState.DONE],
            failed=counts[InboxDocumentState.FAILED],
            window_start=opened,
            window_end=None if opened is None else opened + schedule.window,
            spent=last.spent if last is not None and last.start == opened else 0,
            next_window=next_opening(schedule, now),
            run_id=batch.run_id if batch else "",
        )

    async def documents(self, name: str) -> list[InboxDocument]:
        """The documents of one, in the order they came."""
        self._config(name)
        return await self.rows.documents(name)
