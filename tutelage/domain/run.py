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
    PAUSED = "paused"
    """Goes on when it is resumed."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (RunState.RUNNING, RunState.PAUSED)


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
class StudentResult:
    """A student's part of a run."""

    name: str
    evaluations_done: int
    mean_reward: float | None
    busy: float | None
    """Share of its slots' time that was used, 0 to 1."""


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
    """Over the single evaluations so far, whatever becomes of their candidates; None before the first."""
    seconds_left: float | None
    policy_version: str
    message: str
    created_at: datetime
    finished_at: datetime | None
    unscored: int = 0
    """Candidates that a student could not score, for a fault."""
    rejected: int = 0
    """Candidates of which an evaluation, or all of it by the parser, was rejected."""
    students: tuple[StudentResult, ...] = ()
    teacher_busy: float | None = None
    """Share of the time that the teacher was writing or updating, 0 to 1."""


@dataclass(frozen=True)
class RunPlan:
    """What a run would be, before it is started."""

    resolved_yaml: str
    """Every setting with its default filled in."""
    groups: int
    evaluations: int
    updates: int
    seconds: float | None
    """Estimate from what the same students and teacher took before; None without such."""


@dataclass(frozen=True)
class RunEvent:
    sequence: int
    at: datetime
    kind: str
    detail: dict[str, object]


@dataclass(frozen=True)
class StudentReplica:
    address: str
    """host:port."""
    server_name: str = ""
    """Name that its certificate carries; empty means the address's host."""


@dataclass(frozen=True)
class LogicalStudent:
    name: str
    address: str
    """Where it is, for people: several addresses, a name or a file for one with replicas."""
    base_model: str
    current_adapter_version: str
    """Empty means the untouched base model."""
    changed_at: datetime | None
    previous_adapter_versions: tuple[str, ...] = ()
    """The versions that were current before, newest first: what going back leads to."""
    reachable: bool = False
    left_adapter_versions: tuple[str, ...] = ()
    """The versions that were gone back from, last left first."""
    replicas: tuple[StudentReplica, ...] = ()
    """Its replicas as they were last looked up; none where that was not possible yet."""


class ReportFormat(StrEnum):
    HTML = "html"
    JSON = "json"
    METRICS = "metrics"
    CSV = "csv"
