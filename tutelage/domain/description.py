"""What a service says it is and accepts, and the things it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tutelage.domain.evaluation import Bounds, EvaluationOutcome
from tutelage.domain.policy import Format


@dataclass(frozen=True)
class StudentDescription:
    base_model: str
    base_revision: str
    quantisation: str
    device: str
    compute_dtype: str
    parameters: int
    slots: int
    free_slots: int
    queued: int
    bounds: Bounds
    graders: tuple[str, ...]
    engine_revision: str
    deterministic: bool
    context_length: int
    version: str


@dataclass(frozen=True)
class TeacherDescription:
    base_model: str
    base_revision: str
    quantisation: str
    device: str
    initial_policy_version: str
    latest_policy_version: str
    tokenizer_hash: str
    context_length: int
    formats: tuple[Format, ...]
    algorithms: tuple[str, ...]
    version: str
    promoted_policy_version: str = ""
    """Empty from a teacher that promotes none."""


@dataclass(frozen=True)
class Adapter:
    version: str
    """Content hash of what is stored."""
    parent_version: str
    evaluation_id: str
    rank: int
    bytes: int
    created_at: datetime


class EvaluationPhase(StrEnum):
    QUEUED = "queued"
    BASELINE = "baseline"
    TRAINING = "training"
    QUIZ = "quiz"


class EvaluationState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True)
class EvaluationProgress:
    phase: EvaluationPhase
    steps_done: int = 0
    steps_total: int = 0
    loss: float = 0.0


@dataclass(frozen=True)
class EvaluationStatus:
    state: EvaluationState
    progress: EvaluationProgress
    outcome: EvaluationOutcome | None = None


@dataclass(frozen=True)
class UpdateProgress:
    steps_done: int = 0
    steps_total: int = 0
    loss: float = 0.0
