"""Tasks under way for a run, whose results are the facts that its machine is fed with."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from orchestrator.retrying import Paused
from orchestrator.run_events import Fact


class OpenWork:
    """Starts tasks and hands out what they found, in the order they ended."""

    def __init__(self) -> None:
        self._ended: asyncio.Queue[Fact | BaseException | None] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = 0
        self.pausing = False
        """Whether `next_fact` also returns when work ends without a fact, so that a pause sees the last of it."""

    @property
    def any(self) -> bool:
        """Whether work that ends in a fact is still open."""
        return self._open > 0

    def begin(self, work: Coroutine[Any, Any, Fact]) -> asyncio.Task[None]:
        """Does work that ends in a fact; what it raises is raised by `next_fact`, but for Paused."""

        async def feed() -> None:
            try:
                self._ended.put_nowait(await work)
            except Paused:
                pass
            except Exception as error:
                self._ended.put_nowait(error)

        def over(_: asyncio.Task[None]) -> None:
            work.close()
            self._open -= 1
            if self.pausing:
                self.wake()

        self._open += 1
        task = self.aside(feed())
        task.add_done_callback(over)
        return task

    def aside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Does work that nothing waits for."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def wake(self) -> None:
        """Has `next_fact` return, if with nothing."""
        self._ended.put_nowait(None)

    async def next_fact(self) -> Fact | None:
        """The next fact, or None after `wake`; what the work raised."""
        ended = await self._ended.get()
        if isinstance(ended, BaseException):
            raise ended
        return ended

    async def stop(self) -> None:
        """Cancels all that is under way and waits for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
