"""Signals that ask a command to end: it ends in order, and with the exit code that it chooses."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType, TracebackType
from typing import Any, TypeVar

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Result = TypeVar("Result")


class AskedToEnd(KeyboardInterrupt):
    """Of a type of its own, because of what Python makes of its own KeyboardInterrupt.

    One that leaves text under execution, as a dataclass is while its module is imported, counts as unhandled even where
    it is caught: the process then ends by SIGINT, with another exit code than it asks for.
    """


class Interrupts:
    """Within the block, in the main thread, such a signal raises AskedToEnd; a SIGINT that is ignored stays so."""

    def __init__(self) -> None:
        self._cancel: Callable[[], object] | None = None
        self._asked = False

    def __enter__(self) -> Interrupts:
        # What is started in the background, or by nohup, is not to hear them.
        heard = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._end) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """As asyncio.run; a signal cancels the work, which can clean up, instead of breaking into the event loop."""
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            task = loop.create_task(work)
            # Also wakes a loop that waits.
            self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
            try:
                result = loop.run_until_complete(task)
            except asyncio.CancelledError:
                if not self._asked:
                    raise
            finally:
                self._cancel = None
        if self._asked:
            raise AskedToEnd
        return result

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        if self._cancel is None:
            raise AskedToEnd
        self._cancel()
