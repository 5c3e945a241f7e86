"""A blocking generator run in a thread, read from the event loop: torch never runs on the loop."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")


async def iterate_in_thread(start: Callable[[Callable[[], bool]], Iterator[ItemT]]) -> AsyncIterator[ItemT]:
    """Items of `start(cancelled)`, run in a thread of its own; what it raises is raised here.

    When the reader goes away `cancelled()` turns true, and the generator is asked for nothing more.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[bool, ItemT | BaseException | None]] = asyncio.Queue()
    gone = threading.Event()

    def tell(ended: bool, value: ItemT | BaseException | None) -> None:
        # A loop that has closed has no reader left.
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, (ended, value))

    def run() -> None:
        try:
            for item in start(gone.is_set):
                tell(False, item)
                if gone.is_set():
                    break
            tell(True, None)
        except BaseException as error:
            tell(True, error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True)
    thread.start()
    try:
        while True:
            ended, value = await queue.get()
            if not ended:
                yield value  # type: ignore[misc]
            elif isinstance(value, BaseException):
                raise value
            else:
                return
    finally:
        gone.set()
