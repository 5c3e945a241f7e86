"""One evaluation from key to outcome: the quiz before, the inner loop, the quiz after.

Whatever is the edit's own fault ends as a rejection; every other fault is raised, and never becomes a report.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from student.adapted import AdaptedModel, adapted
from student.bounds import effective_settings, too_large
from student.evaluations import EvaluationStore
from student.inner_loop import Row, train
from student.lora import LoraWeights
from student.quiz import take_quiz
from tutelage.domain.canonical import content_hash
from tutelage.domain.description import EvaluationPhase, EvaluationProgress
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import Bounds, EvaluationKey, EvaluationReport, QuizResult, TrainingCost
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


@dataclass(frozen=True)
class Ended:
    """A final outcome; `weights` is the fresh adapter that earned a report."""

    outcome: EvaluationReport | Rejection
    weights: LoraWeights | None = None


def rows_of(loaded: LoadedModel, edit: SelfEdit, loss_mask: LossMask) -> list[Row] | Rejection:
    """The edit's documents as ids and labels under this student's own template."""
    if not edit.documents:
        return Rejection(RejectionReason.EMPTY, field="documents", message="the self-edit has no training document")
    rows = []
    for i, document in enumerate(edit.documents):
        try:
            ids, labels = document_ids(loaded.tokenizer, document, loss_mask)
        except InvalidInput as error:
            return Rejection(RejectionReason.EMPTY, field=f"documents[{i}]", message=str(error))
        rows.append(Row(tuple(ids), tuple(labels)))
    return rows


class Evaluation:
    """The work of one key on one loaded model, which nobody else touches meanwhile."""

    def __init__(
        self,
        loaded: LoadedModel,
        key: EvaluationKey,
        parent: LoraWeights | None,
        *,
        bounds: Bounds,
        quiz: QuizSettings,
        store: EvaluationStore,
        stop: threading.Event,
        progress: Callable[[EvaluationProgress], None],
    ) -> None:
        self._loaded, self._key, self._parent = loaded, key, parent
        self._bounds, self._quiz_settings, self._store = bounds, quiz, store
        self._stop, self._progress = stop, progress

    def run(self) -> Ended:
        """Raises Cancelled, Exhausted or whatever broke; in none of these cases is anything stored."""
        key = self._key
        effective = effective_settings(key.settings, key.self_edit.directives, self._bounds)
        if isinstance(effective, Rejection):
            return Ended(effective)
        rows = rows_of(self._loaded, key.self_edit, effective.settings.loss_mask)
        if isinstance(rows, Rejection):
            return Ended(rows)
        sizes = [len(row.ids) for row in rows]
        rejection = too_large(sizes, effective.settings, self._bounds, self._loaded.context_length)
        if rejection is not None:
            return Ended(rejection)
        started = time.monotonic()
        before, retention_before, cached = self._baselines()
        quiz_seconds = time.monotonic() - started
        with adapted(self._loaded, parent=self._parent, fresh=effective.settings, seed=key.seed) as model:
            trained = train(
                model, rows, effective.settings, key.seed, stop=self._stop, progress=self._training_progress
            )
            if isinstance(trained, Rejection):
                return Ended(trained)
            self._progress(EvaluationProgress(EvaluationPhase.QUIZ, trained.steps, trained.steps, trained.last_loss))
            started = time.monotonic()
            try:
                after, retention_after = self._quiz(model, key.quiz), self._quiz(model, key.retention_quiz)
            except ArithmeticError as error:
                return Ended(Rejection(RejectionReason.DIVERGED, field="quiz", message=f"after training {error}"))
            quiz_seconds += time.monotonic() - started
            weights = model.fresh_weights()
        cost = TrainingCost(
            steps=trained.steps,
            tokens=trained.tokens,
            supervised_tokens=trained.supervised_tokens,
            first_loss=trained.first_loss,
            last_loss=trained.last_loss,
            train_seconds=trained.seconds,
            quiz_seconds=quiz_seconds,
            baseline_cached=cached,
        )
        report = EvaluationReport(
            evaluation_id=key.id,
            before=before,
            after=after,
            retention_before=retention_before,
            retention_after=retention_after,
            effective_settings=effective.settings,
            cost=cost,
            answer_overlap=answer_overlap(key.self_edit, key.quiz),
            finished_at=datetime.now(UTC),
            clamped_fields=effective.clamped_fields,
        )
        return Ended(report, weights)

    def _training_progress(self, done: int, total: int, loss: float) -> None:
        self._progress(EvaluationProgress(EvaluationPhase.TRAINING, done, total, loss))

    def _quiz(self, model: AdaptedModel, quiz: Quiz) -> QuizResult:
        answers = take_quiz(
            self._loaded,
            model.model,
            quiz.questions,
            self._key.graders,
            max_new_tokens=self._quiz_settings.max_new_tokens,
            batch_size=self._quiz_settings.batch_size,
            stop=self._stop,
        )
        return QuizResult.of(answers)

    def _baseline_id(self, quiz: Quiz) -> str:
        key = self._key
        parts = [key.base_revision, key.quantisation, key.adapter_version, key.engine_revision, quiz, key.graders]
        return content_hash([*parts, str(self._loaded.device), self._quiz_settings])

    def _baselines(self) -> tuple[QuizResult, QuizResult, bool]:
        """The answers of the parent version to both quizzes, and whether both were known already."""
        quizzes = (self._key.quiz, self._key.retention_quiz)
        found = [self._store.baseline(self._baseline_id(quiz)) for quiz in quizzes]
        cached = all(result is not None for result in found)
        if not cached:
            self._progress(EvaluationProgress(EvaluationPhase.BASELINE))
            with adapted(self._loaded, parent=self._parent) as model:
                for i, quiz in enumerate(quizzes):
                    if found[i] is None:
                        self._store.keep_baseline(self._baseline_id(quiz), self._quiz(model, quiz))
            found = [self._store.baseline(self._baseline_id(quiz)) for quiz in quizzes]
        before, retention_before = found
        assert before is not None
        assert retention_before is not None
        return before, retention_before, cached
