"""Everything a report tells about a run, in one frozen tree that the store fills and the renderers read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tutelage.domain.evaluation import EvaluationReport, QuizResult
from tutelage.domain.policy import UpdateResult
from tutelage.domain.run import RunEvent, RunSummary, TaskWithQuiz
from tutelage.domain.self_edit import Rejection
from tutelage.domain.task import Quiz


@dataclass(frozen=True)
class ReportHeader:
    summary: RunSummary
    config_yaml: str
    versions: dict[str, str] = field(default_factory=dict)
    """Name to version or revision, such as `orchestrator`, `teacher model`, `student a engine`."""
    tasks: tuple[TaskWithQuiz, ...] = ()
    """The run's tasks, for the questions' texts; without them answers are shown by question id."""
    retention_quiz: Quiz = field(default_factory=Quiz)
    resolved_yaml: str = ""
    """Every setting with its value, defaults filled in."""
    content_hash: str = ""
    """Of settings, tasks and retention quiz as they were sent: runs with the same one were asked the same."""


@dataclass(frozen=True)
class EvaluationRecord:
    evaluation_id: str
    candidate_id: str
    student: str
    repeat: int
    """0-based."""
    phase: Literal["round", "commit"] = "round"
    state: Literal["report", "rejected", "failed"] = "report"
    reason: str = ""
    """Why it was rejected or failed; empty for a report."""
    attempts: int = 1
    reward: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    report: EvaluationReport | None = None
    """Also of one that failed, where a judge or a formula did and not the student."""
    seconds: float | None = None
    """From a slot to the outcome, retries included; wall-clock."""
    seed: int | None = None
    """Of the inner loop."""


@dataclass(frozen=True)
class CandidateRecord:
    id: str
    round: int
    """1-based."""
    task_id: str
    task_title: str
    index: int
    """0-based, within its document and round."""
    format: str
    policy_version: str
    text: str
    """As the teacher wrote it."""
    documents: tuple[str, ...] = ()
    """The training documents parsed from it, as text."""
    rejection: Rejection | None = None
    reward: float | None = None
    """Mean over its scored evaluations; None means unscored."""
    evaluations: tuple[EvaluationRecord, ...] = ()
    chosen: bool | None = None
    """Whether the round's update made it more probable; None where no teacher has told, or not yet."""
    seed: int | None = None
    completion_tokens: int | None = None


class RoundUpdate(NamedTuple):
    round: int
    result: UpdateResult


@dataclass(frozen=True)
class CommitRecord:
    student: str
    task_id: str
    candidate_id: str
    evaluation_id: str
    committed: bool
    reason: str = ""
    """Why it was not committed, or a remark."""
    version: str = ""
    parent_version: str = ""
    quiz_before: QuizResult = field(default_factory=QuizResult)
    quiz_after: QuizResult = field(default_factory=QuizResult)
    retention_after: QuizResult = field(default_factory=QuizResult)
    """As the stored version answered; empty where that is not known."""
    fault: bool = False
    """Whether a fault, and not the gate, kept it from being committed."""


@dataclass(frozen=True)
class PhaseTime:
    round: int
    """1-based; 0 for what belongs to no round."""
    phase: str
    seconds: float


@dataclass(frozen=True)
class RunReport:
    header: ReportHeader
    candidates: tuple[CandidateRecord, ...] = ()
    updates: tuple[RoundUpdate, ...] = ()
    commits: tuple[CommitRecord, ...] = ()
    phases: tuple[PhaseTime, ...] = ()
    events: tuple[RunEvent, ...] = ()
    all_answers: bool = True
    """False: of a run of very many evaluations only some answers to the best and worst edits are held."""
    events_left_out: int = 0
    """Starts and ends of single evaluations that a very long run's report does not hold."""
