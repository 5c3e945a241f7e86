"""Calls that are asked again while the other side is away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from orchestrator import metrics
from orchestrator.backoff import backoff_s
from orchestrator.config import RetrySettings
from tutelage.domain.errors import Exhausted, TutelageError, Unavailable

T = TypeVar("T")
TEACHER_FAULTS = 4
"""Times that a call is made on which the teacher breaks (a crash, no memory) before what asked for it fails."""


class Paused(Exception):
    """What was about to begin, or waited to be made again, does not: the run is paused."""


logger = logging.getLogger(__name__)


async def patiently(
    call: Callable[[], Awaitable[T]],
    service: str,
    retry: RetrySettings,
    *,
    attempts: int | None = None,
    total_s: float | None = None,
    faults: int = 1,
    paused: asyncio.Event | None = None,
    told: Callable[[TutelageError, int, float], Awaitable[None]] | None = None,
) -> T:
    """The call's result, asked again with backoff while Unavailable or Exhausted; what the call did wrong is raised.

    Without `attempts` and `total_s` (seconds) it waits as long as it takes. A call that broke on the other side
    (INTERNAL, UNKNOWN) is made `faults` times. It must be safe to repeat. Once `paused` is set it is not: Paused.
    """
    attempt = broken = 0
    begun = time.monotonic()
    while True:
        try:
            return await call()
        except TutelageError as error:
            attempt += 1
            if isinstance(error, Unavailable | Exhausted):
                late = total_s is not None and time.monotonic() - begun >= total_s
                if late or (attempts is not None and attempt >= attempts):
                    raise
            elif type(error) is not TutelageError:
                raise
            else:
                broken += 1
                if broken >= faults:
                    raise
            metrics.RETRIES.labels(service).inc()
            pause = backoff_s(attempt, retry.initial_s, retry.factor, retry.maximum_s)
            pause = min(retry.maximum_s, max(pause, getattr(error, "retry_after_s", None) or 0.0))
            logger.warning("%s, attempt %d, again in %.1f s: %s", service, attempt, pause, error)
            if told is not None:
                await told(error, attempt, pause)
            if paused is None:
                await asyncio.sleep(pause)
                continue
            try:
                async with asyncio.timeout(pause):
                    await paused.wait()
            except TimeoutError:
                continue
            raise Paused from None
