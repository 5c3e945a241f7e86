"""An evaluation: one inner loop with a quiz before and after, named by everything that decides its result."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from tutelage.domain.canonical import as_floats, content_hash
from tutelage.domain.self_edit import LossMask, Rejection, Schedule, SelfEdit
from tutelage.domain.task import Quiz


@dataclass(frozen=True)
class InnerLoopSettings:
    """Settings of the inner loop (SEAL, appendix B: LoRA r 32, alpha 64, lr 1e-3, 10 epochs, batch 1, linear decay)."""

    rank: int = 32
    alpha: float = 64.0
    target_modules: tuple[str, ...] = ()
    """Projections that carry LoRA, such as `q_proj`; empty means all linear layers but the head."""
    learning_rate: float = 1e-3
    epochs: int = 10
    batch_size: int = 1
    schedule: Schedule = Schedule.LINEAR
    loss_mask: LossMask = LossMask.COMPLETION
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """0 turns clipping off."""
    adapt_last_layers: int = 0
    """LoRA only on so many of the last decoder layers; 0 means on all."""
    plateau_epochs: int = 0
    """Ends the loop after so many epochs in a row without a lower loss; 0 means never."""

    def __post_init__(self) -> None:
        as_floats(self, "alpha", "learning_rate", "weight_decay", "max_grad_norm")


@dataclass(frozen=True)
class EvaluationKey:
    base_model: str
    base_revision: str
    quantisation: str
    adapter_version: str
    """Empty means the untouched base model."""
    self_edit: SelfEdit
    quiz: Quiz
    retention_quiz: Quiz
    graders: tuple[str, ...]
    settings: InnerLoopSettings
    engine_revision: str
    seed: int

    @property
    def id(self) -> str:
        """Lower-case hex SHA-256 of the key's canonical JSON."""
        return content_hash(self)


@dataclass(frozen=True)
class Answer:
    question_id: str
    text: str
    scores: dict[str, float]
    """Score by grader; `loglik` is the mean log-likelihood of the gold answer, in nats a token."""


@dataclass(frozen=True)
class QuizResult:
    answers: tuple[Answer, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    """Mean over the questions, by grader."""

    @classmethod
    def of(cls, answers: tuple[Answer, ...]) -> QuizResult:
        names = list(answers[0].scores) if answers else []
        return cls(answers, {name: sum(a.scores[name] for a in answers) / len(answers) for name in names})


@dataclass(frozen=True)
class TrainingCost:
    steps: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    first_loss: float = 0.0
    last_loss: float = 0.0
    train_seconds: float = 0.0
    """Of what it did beside others its share, so that those of all add up to the student's time."""
    quiz_seconds: float = 0.0
    """As `train_seconds`."""
    baseline_cached: bool = False


@dataclass(frozen=True)
class EvaluationReport:
    evaluation_id: str
    before: QuizResult
    after: QuizResult
    retention_before: QuizResult
    retention_after: QuizResult
    effective_settings: InnerLoopSettings
    cost: TrainingCost
    answer_overlap: float
    """Share of the quiz's answers that appear verbatim in the self-edit, 0 to 1."""
    finished_at: datetime
    """Aware, UTC, whole microseconds."""
    clamped_fields: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A fault of a machine, a network or a judge. Never a reward."""

    message: str
    retryable: bool = True
    exhausted: bool = False
    """The machine had no room for it: it is full, not broken."""


EvaluationOutcome = EvaluationReport | Rejection | Failure


@dataclass(frozen=True)
class Bounds:
    """What a student accepts; both ends included."""

    min_learning_rate: float = 1e-6
    max_learning_rate: float = 1e-2
    min_epochs: int = 1
    max_epochs: int = 30
    min_rank: int = 1
    max_rank: int = 128
    max_document_tokens: int = 1024
    max_documents: int = 128
    max_steps: int = 2000
    clamp: bool = False
    """Whether directives out of bounds are clamped (otherwise the edit is rejected)."""
