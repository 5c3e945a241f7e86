"""A run as its watchers see it, and the students that belong to an orchestrator."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tutelage.domain.task import Quiz, Task

NO_UPDATE = "none"
"""The algorithm that is recorded for a round after which the teacher was not to learn."""


class RunState(StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RunPhase(StrEnum):
    WRITING = "writing"
    EVALUATING = "evaluating"
    UPDATING = "updating"
    COMMITTING = "committing"
    ENDED = "ended"


@dataclass(frozen=True)
class TaskWithQuiz:
    task: Task
    quiz: Quiz


@dataclass(frozen=True)
class RunSummary:
    run_id: str
    state: RunState
    phase: RunPhase
    round: int
    """1-based."""
    rounds: int
    evaluations_done: int
    evaluations_total: int
    mean_reward: float | None
    seconds_left: float | None
    policy_version: str
    message: str
    created_at: datetime
    finished_at: datetime | None
    unscored: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class RunEvent:
    sequence: int
    at: datetime
    kind: str
    detail: dict[str, object]


@dataclass(frozen=True)
class LogicalStudent:
    name: str
    address: str
    base_model: str
    current_adapter_version: str
    """Empty means the untouched base model."""
    changed_at: datetime | None
    previous_adapter_versions: tuple[str, ...] = ()
    """The versions that were current before, newest first."""
    reachable: bool = False


class ReportFormat(StrEnum):
    HTML = "html"
    JSON = "json"
    METRICS = "metrics"
    CSV = "csv"
