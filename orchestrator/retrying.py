"""Calls that are asked again while the other side is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from orchestrator import metrics
from orchestrator.backoff import backoff_s
from orchestrator.config import RetrySettings
from tutelage.domain.errors import Exhausted, TutelageError, Unavailable

T = TypeVar("T")
logger = logging.getLogger(__name__)


async def patiently(
    call: Callable[[], Awaitable[T]],
    service: str,
    retry: RetrySettings,
    *,
    attempts: int | None = None,
    told: Callable[[TutelageError, int, float], Awaitable[None]] | None = None,
) -> T:
    """The call's result, asked again with backoff while Unavailable or Exhausted; other faults are raised.

    Without `attempts` it waits as long as it takes. The call must be safe to repeat.
    """
    attempt = 0
    while True:
        try:
            return await call()
        except (Unavailable, Exhausted) as error:
            attempt += 1
            if attempts is not None and attempt >= attempts:
                raise
            metrics.RETRIES.labels(service).inc()
            pause = backoff_s(attempt, retry.initial_s, retry.factor, retry.maximum_s)
            pause = min(retry.maximum_s, max(pause, error.retry_after_s or 0.0))
            logger.warning("%s, attempt %d, again in %.1f s: %s", service, attempt, pause, error)
            if told is not None:
                await told(error, attempt, pause)
            await asyncio.sleep(pause)
