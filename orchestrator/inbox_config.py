"""Settings of an inbox: where documents come from, when they are worked off, and how they are learned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from orchestrator.adapt_config import Recipe
from orchestrator.schedule import Schedule
from tutelage.settings import Inconsistent

MOST_DOCUMENTS = 10_000
"""Documents of one submission, or of one file."""


class InboxConfig(Recipe):
    """An inbox. Documents are submitted over gRPC, or dropped in a folder; scheduled windows work them off."""

    folder: Path | None = None
    """Folder whose `*.jsonl` and `*.json` files are taken in, and then moved to `taken` or `refused` in it."""
    settle_s: float = Field(default=5.0, ge=0)
    """Seconds a dropped file must have been left unchanged before it is read."""
    cron: str = "0 2 * * *"
    """When a window opens: minute, hour, day of month, month, day of week."""
    time_zone: str = "UTC"
    """Time zone of `cron`, such as `Europe/Vienna`."""
    window_minutes: float = Field(default=240.0, gt=0, le=7 * 24 * 60)
    """How long after its opening a window may begin work; what it began is finished."""
    budget: int = Field(default=1000, ge=1)
    """Evaluations a window may use, counted beforehand by the most that its documents can take."""
    batch: int = Field(default=8, ge=1, le=1000)
    """Documents that are begun at once: one run of the orchestrator."""
    attempts: int = Field(default=3, ge=1, le=100)
    """Runs in which faults may keep a document from being decided before it is given up."""

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("a time zone of the IANA database, such as Europe/Vienna or UTC") from None
        return value

    @field_validator("cron")
    @classmethod
    def _can_match(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError("five fields: minute, hour, day of month, month, day of week")
        try:
            next(CronSim(value, datetime.now(UTC)))
        except (CronSimError, StopIteration) as error:
            raise ValueError(f"a cron expression that matches some day ({error})") from None
        return value

    @model_validator(mode="after")
    def _measured(self) -> InboxConfig:
        if unmeasured := self.unmeasured():
            raise Inconsistent(unmeasured)
        return self

    @model_validator(mode="after")
    def _affordable(self) -> InboxConfig:
        most = self.evaluations_per_document
        if self.budget < most:
            raise Inconsistent.of("budget", self.budget, f"{most} or more, the evaluations that one document can take")
        return self

    def schedule(self) -> Schedule:
        """What the scheduler needs to know of it."""
        window = timedelta(minutes=self.window_minutes)
        return Schedule(self.cron, self.time_zone, window, self.budget, self.batch)
