"""What the store gives back: rows in the domain's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from orchestrator.plan import Plan
from orchestrator.run_config import RunConfig
from tutelage.domain.description import StudentDescription, TeacherDescription
from tutelage.domain.evaluation import EvaluationOutcome
from tutelage.domain.policy import Candidate, Format, UpdateResult
from tutelage.domain.run import RunState, TaskWithQuiz
from tutelage.domain.task import Quiz


@dataclass(frozen=True)
class RunStudent:
    """A logical student as it was when the run started: what the keys of its evaluations are made of."""

    name: str
    description: StudentDescription
    adapter_version: str


@dataclass(frozen=True)
class Run:
    """A run's fixed part, and its state."""

    run_id: str
    config: RunConfig
    config_yaml: str
    content_hash: str
    tasks: Mapping[str, TaskWithQuiz]
    retention_quiz: Quiz
    format: Format
    teacher: TeacherDescription
    policy_version: str
    """The policy of round 1."""
    students: Mapping[str, RunStudent]
    state: RunState
    message: str
    created_at: datetime
    finished_at: datetime | None
    extra_rounds: int = 0
    """Rounds that were added to those of the settings."""

    @property
    def plan(self) -> Plan:
        """What the machine needs to know of it."""
        config = self.config
        return Plan(
            tasks=tuple(self.tasks),
            students=config.students,
            candidates=config.candidates,
            repeats=config.evaluation_seeds,
            rounds=config.rounds + self.extra_rounds,
            commits=config.commit.when == "end",
            rejected_reward=config.reward.rejected_reward,
            staleness=config.staleness,
            across=config.reward.across,
        )


@dataclass(frozen=True)
class StoredCandidate:
    id: str
    round: int
    task_id: str
    edit: str | None
    """Content hash of the self-edit; None for a rejected one."""
    candidate: Candidate


@dataclass(frozen=True)
class Pending:
    """How far an evaluation came that has not ended."""

    attempts: int = 0
    """Failed ones."""
    started_us: int = 0
    """When it first started, in microseconds since 1970; 0 when it has not."""


@dataclass(frozen=True)
class StoredEvaluation:
    evaluation_id: str
    student: str
    phase: str
    """`round` or `commit`."""
    round: int
    task_id: str
    edit: str
    repeat: int
    adapter_version: str
    state: str
    """`pending`, `report`, `rejected` or `failed`; all but the first are final. One that failed for a judge or a
    formula has its report as outcome all the same."""
    attempts: int = 0
    reason: str = ""
    outcome: EvaluationOutcome | None = None
    reward: float | None = None
    parts: Mapping[str, float] | None = None
    seconds: float | None = None
    replica: str = ""
    """Address of the replica that gave the outcome."""
    started_us: int = 0
    """When it first started, in microseconds since 1970."""

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state != "pending"


@dataclass(frozen=True)
class StoredUpdate:
    round: int
    version: str
    result: UpdateResult


@dataclass(frozen=True)
class StudentTally:
    """A student's part of a run's rewards."""

    done: int
    mean_reward: float | None


@dataclass(frozen=True)
class Tally:
    """Counts of a run's rewards."""

    done: int
    rejected: int
    """Candidates with a rejected evaluation, or rejected by the parser."""
    unscored: int
    """Candidates that a student could not score: what it was to do failed for good, and nothing else of it counts."""
    mean_reward: float | None
    """Over single evaluations, whatever becomes of their candidates."""
    students: Mapping[str, StudentTally]
    mean_seconds: float | None
    """Of the evaluations that a student ended."""
