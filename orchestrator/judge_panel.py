"""A run's judges together: those that something hangs on are asked patiently, the others once.

A judge that fails takes nothing from a report: what the others said stands, and so does what the student answered. What
becomes of the reward without it is for who asked to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from orchestrator import metrics
from orchestrator.config import RetrySettings
from orchestrator.judging import Judges
from orchestrator.retrying import patiently
from orchestrator.run_config import RunConfig
from tutelage.domain.errors import TutelageError
from tutelage.domain.evaluation import EvaluationReport
from tutelage.domain.task import Quiz

logger = logging.getLogger(__name__)


@dataclass
class Judged:
    """A report on its way through the judges."""

    report: EvaluationReport
    missing: dict[str, str] = field(default_factory=dict)
    """By judge that did not grade it, why."""

    def given_up(self, judges: Collection[str], why: str) -> None:
        """Those of the judges that have not ended will not."""
        self.missing |= {
            name: why for name in judges if name not in self.report.after.scores.keys() | self.missing.keys()
        }


@dataclass(frozen=True)
class JudgePanel:
    judges: Judges
    config: RunConfig
    retry: RetrySettings
    paused: asyncio.Event
    """Set once nobody is to be asked again."""

    async def judge(
        self,
        judged: Judged,
        quiz: Quiz,
        needed: Collection[str],
        told: Callable[[TutelageError, int, float], Awaitable[None]] | None = None,
    ) -> None:
        """Adds each judge's scores as they come; `told` of each time that one of `needed` is asked again.

        Paused when one of them would be asked again, and is not to be.
        """
        deadlines = self.config.deadlines
        for name in self.config.judges:
            try:
                judged.report = await patiently(
                    partial(self.judges.judged, judged.report, quiz, [name]),
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
                judged.missing[name] = str(error)
