"""An inbox of a few documents, opened over a world under a clock that its test sets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from orchestrator.inbox_config import InboxConfig
from orchestrator.inboxes import Inboxes
from tutelage.domain.inbox import InboxDocumentState
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.settings import parse_settings

NIGHT = datetime(2026, 5, 4, 2, 10, tzinfo=UTC)
RECIPE = {"students": ["a", "b"], "candidates": 2, "policy": "initial", "window_minutes": 60, "settle_s": 0}
DONE, WAITS, GIVEN_UP = InboxDocumentState.DONE, InboxDocumentState.WAITING, InboxDocumentState.FAILED


def document(name: str, text: str = "Text.") -> TaskWithQuiz:
    return TaskWithQuiz(Task(name, DocumentTask(f"Title {name}", text)), Quiz((Question("q", "What?", "That"),)))


DOCUMENTS = tuple(document(f"d{number}") for number in range(5))


class Clock:
    def __init__(self, now: datetime = NIGHT) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def config(**changes: Any) -> InboxConfig:
    return parse_settings(RECIPE | changes, InboxConfig)


@contextlib.asynccontextmanager
async def opened(world: Any, clock: Clock, **changes: Any) -> AsyncIterator[tuple[Any, Inboxes]]:
    async with world.engine() as engine:
        inboxes = Inboxes(engine, {"news": config(**changes)}, clock)
        await inboxes.start()
        try:
            yield engine, inboxes
        finally:
            await inboxes.stop()


async def until(inboxes: Inboxes, *states: InboxDocumentState, name: str = "news", timeout_s: float = 60) -> Any:
    """The documents, once they have these states in turn."""

    async def look() -> Any:
        while True:
            found = await inboxes.documents(name)
            if [item.state for item in found] == list(states):
                return found
            await asyncio.sleep(0.02)

    return await asyncio.wait_for(look(), timeout_s)


async def evaluations_ended(engine: Any) -> int:
    """Of all runs."""
    found = [await engine.store.evaluations(run_id) for run_id in await engine.store.run_ids()]
    return sum(row.final for rows in found for row in rows)
