"""A run's judges together: those that something hangs on are asked patiently, the others once.

A judge that fails takes nothing from a report: what the others said stands, and so does what the student answered. What
becomes of the reward without it is for who asked to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from orchestrator import metrics
from orchestrator.config import RetrySettings
from orchestrator.judging import Judges
from orchestrator.retrying import patiently
from orchestrator.run_config import RunConfig
from tutelage.domain.errors import TutelageError
from tutelage.domain.evaluation import EvaluationReport
from tutelage.domain.task import Quiz

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    report: EvaluationReport
    missing: Mapping[str, str]
    """By judge that did not grade it, why."""


@dataclass(frozen=True)
class JudgePanel:
    judges: Judges
    config: RunConfig
    retry: RetrySettings
    paused: asyncio.Event
    """Set once nobody is to be asked again."""

    async def judged(
        self,
        report: EvaluationReport,
        quiz: Quiz,
        needed: Collection[str],
        told: Callable[[TutelageError, int, float], Awaitable[None]] | None = None,
    ) -> Judged:
        """The report with the scores of those that graded it; `told` of each time that one of `needed` is asked again.

        Paused when one of them would be asked again, and is not to be.
        """
        missing: dict[str, str] = {}
        deadlines = self.config.deadlines
        for name in self.config.judges:
            try:
                report = await patiently(
                    lambda so_far=report, judge=name: self.judges.judged(so_far, quiz, [judge]),  # type: ignore[misc]
                    "judge",
                    self.retry,
                    attempts=deadlines.attempts if name in needed else 1,
                    total_s=deadlines.total_s,
                    paused=self.paused,
                    told=told,
                )
            except TutelageError as error:
                metrics.JUDGED.labels("missing").inc()
                logger.warning("a report stays without judge %r: %s", name, error)
                missing[name] = str(error)
        return Judged(report, missing)
