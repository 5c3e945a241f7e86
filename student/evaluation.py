"""One evaluation from key to outcome: what is quizzed, what is trained, and what the report says.

Whatever is the edit's own fault ends as a rejection; every other fault is raised, and never becomes a report. The
arithmetic is the room's: it quizzes and trains many evaluations together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from student.bank_adapter import BankAdapter
from student.bounds import Effective, effective_settings, too_large, too_long, too_many
from student.evaluations import EvaluationStore
from student.inner_loop import Row, Trained
from student.lora import LoraWeights
from student.quiz import Sitting
from tutelage.domain.canonical import content_hash
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import Answer, Bounds, EvaluationKey, EvaluationReport, QuizResult, TrainingCost
from tutelage.domain.self_edit import LossMask, Rejection, RejectionReason, SelfEdit
from tutelage.domain.task import Quiz
from tutelage.grading import answer_overlap
from tutelage.models.chat import document_ids
from tutelage.models.loading import LoadedModel


@dataclass(frozen=True)
class QuizSettings:
    """How this student takes a quiz."""

    max_new_tokens: int
    batch_size: int
    apart: bool = False
    """Each sitting in batches of its own, so that no rounding depends on which others are known already."""


@dataclass(frozen=True)
class Ended:
    """A final outcome; `weights` is the fresh adapter that earned a report."""

    outcome: EvaluationReport | Rejection
    weights: LoraWeights | None = None


def rows_of(loaded: LoadedModel, edit: SelfEdit, loss_mask: LossMask, most_tokens: int) -> list[Row] | Rejection:
    """The edit's documents as ids and labels under this student's own template, up to the first that is too long.

    All others wait while one edit is tokenised: what decides nothing any more is left out.
    """
    if not edit.documents:
        return Rejection(RejectionReason.EMPTY, field="documents", message="the self-edit has no training document")
    rows = []
    for i, document in enumerate(edit.documents):
        try:
            ids, labels = document_ids(loaded.tokenizer, document, loss_mask)
        except InvalidInput as error:
            return Rejection(RejectionReason.EMPTY, field=f"documents[{i}]", message=str(error))
        rows.append(Row(tuple(ids), tuple(labels)))
        if len(ids) > most_tokens:
            break
    return rows


class Evaluation:
    """The work of one key; `rows` is what it trains on. Raises nothing: an edit at fault has `rejection` set."""

    def __init__(
        self,
        loaded: LoadedModel,
        key: EvaluationKey,
        parent: BankAdapter | None,
        *,
        bounds: Bounds,
        quiz: QuizSettings,
        store: EvaluationStore,
    ) -> None:
        self.key, self.parent = key, parent
        self._loaded, self._quiz_settings, self._store = loaded, quiz, store
        self.rejection: Rejection | None = None
        self.effective = Effective(key.settings)
        self.rows: list[Row] = []
        self._prepare(bounds)
        self._cached = not self.missing_baselines()
        self.quiz_seconds = 0.0

    def _prepare(self, bounds: Bounds) -> None:
        effective = effective_settings(self.key.settings, self.key.self_edit.directives, bounds)
        if isinstance(effective, Rejection):
            self.rejection = effective
            return
        self.effective = effective
        documents, loaded = self.key.self_edit.documents, self._loaded
        self.rejection = too_many(len(documents), bounds) or too_long(
            documents, loaded.longest_token, bounds, loaded.context_length
        )
        if self.rejection is not None:
            return
        most_tokens = min(bounds.max_document_tokens, loaded.context_length)
        rows = rows_of(loaded, self.key.self_edit, effective.settings.loss_mask, most_tokens)
        if isinstance(rows, Rejection):
            self.rejection = rows
            return
        sizes = [len(row.ids) for row in rows]
        self.rejection = too_large(sizes, effective.settings, bounds, loaded.context_length)
        self.rows = [row for row in rows if row.supervised]
        if self.rejection is None and not self.rows:
            self.rejection = Rejection(
                RejectionReason.EMPTY, field="documents", message="no token of the self-edit carries loss"
            )

    def _quizzes(self) -> tuple[Quiz, Quiz]:
        return self.key.quiz, self.key.retention_quiz

    def missing_baselines(self) -> dict[str, Sitting]:
        """What the parent version has still to answer before the training, by the id under which it is kept."""
        adapters = (self.parent,) if self.parent is not None else ()
        return {
            baseline_id: Sitting(quiz.questions, self.key.graders, adapters)
            for baseline_id, quiz in ((self._baseline_id(quiz), quiz) for quiz in self._quizzes())
            if self._store.baseline(baseline_id) is None
        }

    def final_sittings(self, adapters: tuple[BankAdapter, ...]) -> list[Sitting]:
        """The quiz and the retention quiz for the trained student."""
        return [Sitting(quiz.questions, self.key.graders, adapters) for quiz in self._quizzes()]

    def ended(
        self, trained: Trained, weights: LoraWeights, answers: Sequence[tuple[Answer, ...] | ArithmeticError]
    ) -> Ended:
        """The report, or the rejection of an edit after which likelihoods are no numbers."""
        results = []
        for given in answers:
            if isinstance(given, ArithmeticError):
                message = f"after training {given}"
                return Ended(Rejection(RejectionReason.DIVERGED, field="quiz", message=message))
            results.append(QuizResult.of(given))
        before, retention_before = (self._store.baseline(self._baseline_id(quiz)) for quiz in self._quizzes())
        assert before is not None
        assert retention_before is not None
        cost = TrainingCost(
            steps=trained.steps,
            tokens=trained.tokens,
            supervised_tokens=trained.supervised_tokens,
            first_loss=trained.first_loss,
            last_loss=trained.last_loss,
            train_seconds=trained.seconds,
            quiz_seconds=self.quiz_seconds,
            baseline_cached=self._cached,
        )
        report = EvaluationReport(
            evaluation_id=self.key.id,
            before=before,
            after=results[0],
            retention_before=retention_before,
            retention_after=results[1],
            effective_settings=self.effective.settings,
            cost=cost,
            answer_overlap=answer_overlap(self.key.self_edit, self.key.quiz),
            finished_at=datetime.now(UTC),
            clamped_fields=self.effective.clamped_fields,
        )
        return Ended(report, weights)

    def _baseline_id(self, quiz: Quiz) -> str:
        key = self.key
        parts = [key.base_revision, key.quantisation, key.adapter_version, key.engine_revision, quiz, key.graders]
        return content_hash([*parts, str(self._loaded.device), self._quiz_settings])
