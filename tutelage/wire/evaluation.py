"""Evaluations on the wire: the key that names one, and what becomes of it."""

from __future__ import annotations

from tutelage.domain.description import EvaluationPhase, EvaluationProgress, EvaluationState, EvaluationStatus
from tutelage.domain.evaluation import (
    Answer,
    Bounds,
    EvaluationKey,
    EvaluationOutcome,
    EvaluationReport,
    Failure,
    InnerLoopSettings,
    QuizResult,
    TrainingCost,
)
from tutelage.domain.self_edit import Rejection
from tutelage.v1 import evaluation_pb2 as pb
from tutelage.v1 import student_service_pb2 as student_pb
from tutelage.wire.checks import INT64_MAX, Checks, fitting, reverse, timestamp
from tutelage.wire.self_edit import (
    LOSS_MASK_VALUES,
    LOSS_MASKS,
    SCHEDULE_VALUES,
    SCHEDULES,
    rejection_from_wire,
    rejection_to_wire,
    self_edit_from_wire,
    self_edit_to_wire,
)
from tutelage.wire.task import quiz_from_wire, quiz_to_wire, required_quiz_from_wire

_PHASES: dict[int, EvaluationPhase] = {
    pb.EVALUATION_PHASE_QUEUED: EvaluationPhase.QUEUED,
    pb.EVALUATION_PHASE_BASELINE: EvaluationPhase.BASELINE,
    pb.EVALUATION_PHASE_TRAINING: EvaluationPhase.TRAINING,
    pb.EVALUATION_PHASE_QUIZ: EvaluationPhase.QUIZ,
}
_PHASE_VALUES = reverse(_PHASES)
_STATES: dict[int, EvaluationState] = {
    student_pb.EVALUATION_STATE_QUEUED: EvaluationState.QUEUED,
    student_pb.EVALUATION_STATE_RUNNING: EvaluationState.RUNNING,
    student_pb.EVALUATION_STATE_DONE: EvaluationState.DONE,
}
_STATE_VALUES = reverse(_STATES)


def inner_loop_settings_to_wire(settings: InnerLoopSettings) -> pb.InnerLoopSettings:
    """The settings as a message; InvalidInput when a number does not fit the wire."""
    message = pb.InnerLoopSettings(
        rank=fitting("settings.rank", settings.rank),
        alpha=settings.alpha,
        target_modules=settings.target_modules,
        learning_rate=settings.learning_rate,
        epochs=fitting("settings.epochs", settings.epochs),
        batch_size=fitting("settings.batch_size", settings.batch_size),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        adapt_last_layers=fitting("settings.adapt_last_layers", settings.adapt_last_layers),
        plateau_epochs=fitting("settings.plateau_epochs", settings.plateau_epochs),
    )
    message.schedule = SCHEDULE_VALUES[settings.schedule]  # type: ignore[assignment]
    message.loss_mask = LOSS_MASK_VALUES[settings.loss_mask]  # type: ignore[assignment]
    return message


def inner_loop_settings_from_wire(message: pb.InnerLoopSettings, field: str = "settings") -> InnerLoopSettings:
    """Settings with every number that must be above 0 above 0: there are no silent defaults."""
    checks = Checks(field)
    return checks.passed(
        InnerLoopSettings(
            rank=checks.count("rank", message.rank, least=1),
            alpha=checks.positive("alpha", message.alpha),
            target_modules=checks.texts("target_modules", message.target_modules),
            learning_rate=checks.positive("learning_rate", message.learning_rate),
            epochs=checks.count("epochs", message.epochs, least=1),
            batch_size=checks.count("batch_size", message.batch_size, least=1),
            schedule=checks.enum("schedule", message.schedule, SCHEDULES),
            loss_mask=checks.enum("loss_mask", message.loss_mask, LOSS_MASKS),
            weight_decay=checks.at_least_zero("weight_decay", message.weight_decay),
            max_grad_norm=checks.at_least_zero("max_grad_norm", message.max_grad_norm),
            adapt_last_layers=checks.count("adapt_last_layers", message.adapt_last_layers),
            plateau_epochs=checks.count("plateau_epochs", message.plateau_epochs),
        )
    )


def evaluation_key_to_wire(key: EvaluationKey) -> pb.EvaluationKey:
    """The key as a message; what comes back has the same id."""
    return pb.EvaluationKey(
        base_model=key.base_model,
        base_revision=key.base_revision,
        quantisation=key.quantisation,
        adapter_version=key.adapter_version,
        self_edit=self_edit_to_wire(key.self_edit),
        quiz=quiz_to_wire(key.quiz),
        retention_quiz=quiz_to_wire(key.retention_quiz),
        graders=key.graders,
        settings=inner_loop_settings_to_wire(key.settings),
        engine_revision=key.engine_revision,
        seed=fitting("key.seed", key.seed, INT64_MAX),
    )


def evaluation_key_from_wire(message: pb.EvaluationKey, field: str = "key") -> EvaluationKey:
    """A key with a quiz, graders and settings; the adapter version and the retention quiz may be empty."""
    checks = Checks(field)
    if not message.graders:
        checks.wrong("graders", "nothing", "at least one grader")
    return checks.passed(
        EvaluationKey(
            base_model=checks.text("base_model", message.base_model),
            base_revision=checks.text("base_revision", message.base_revision),
            quantisation=checks.text("quantisation", message.quantisation),
            adapter_version=message.adapter_version,
            self_edit=checks.required(self_edit_from_wire, message, "self_edit"),
            quiz=checks.required(required_quiz_from_wire, message, "quiz"),
            retention_quiz=checks.nested(quiz_from_wire, message.retention_quiz, "retention_quiz"),
            graders=checks.texts("graders", message.graders),
            settings=checks.required(inner_loop_settings_from_wire, message, "settings"),
            engine_revision=checks.text("engine_revision", message.engine_revision),
            seed=message.seed,
        )
    )


def answer_to_wire(answer: Answer) -> pb.Answer:
    """The answer as a message."""
    return pb.Answer(question_id=answer.question_id, text=answer.text, scores=answer.scores)


def answer_from_wire(message: pb.Answer, field: str = "answer") -> Answer:
    """An answer with finite scores; its text may be empty, as a model's may."""
    checks = Checks(field)
    return checks.passed(Answer(message.question_id, message.text, checks.scores("scores", message.scores)))


def quiz_result_to_wire(result: QuizResult) -> pb.QuizResult:
    """The result as a message."""
    return pb.QuizResult(answers=[answer_to_wire(answer) for answer in result.answers], scores=result.scores)


def quiz_result_from_wire(message: pb.QuizResult, field: str = "quiz_result") -> QuizResult:
    """A result with finite scores."""
    checks = Checks(field)
    answers = checks.each(answer_from_wire, message.answers, "answers")
    return checks.passed(QuizResult(answers, checks.scores("scores", message.scores)))


def _cost_to_wire(cost: TrainingCost) -> pb.TrainingCost:
    return pb.TrainingCost(
        steps=cost.steps,
        tokens=cost.tokens,
        supervised_tokens=cost.supervised_tokens,
        first_loss=cost.first_loss,
        last_loss=cost.last_loss,
        train_seconds=cost.train_seconds,
        quiz_seconds=cost.quiz_seconds,
        baseline_cached=cost.baseline_cached,
    )


def _cost_from_wire(message: pb.TrainingCost, field: str) -> TrainingCost:
    checks = Checks(field)
    return checks.passed(
        TrainingCost(
            steps=checks.count("steps", message.steps),
            tokens=checks.count("tokens", message.tokens),
            supervised_tokens=checks.count("supervised_tokens", message.supervised_tokens),
            first_loss=checks.finite("first_loss", message.first_loss),
            last_loss=checks.finite("last_loss", message.last_loss),
            train_seconds=checks.at_least_zero("train_seconds", message.train_seconds),
            quiz_seconds=checks.at_least_zero("quiz_seconds", message.quiz_seconds),
            baseline_cached=message.baseline_cached,
        )
    )


def evaluation_report_to_wire(report: EvaluationReport) -> pb.EvaluationReport:
    """The report as a message."""
    return pb.EvaluationReport(
        evaluation_id=report.evaluation_id,
        before=quiz_result_to_wire(report.before),
        after=quiz_result_to_wire(report.after),
        retention_before=quiz_result_to_wire(report.retention_before),
        retention_after=quiz_result_to_wire(report.retention_after),
        effective_settings=inner_loop_settings_to_wire(report.effective_settings),
        cost=_cost_to_wire(report.cost),
        answer_overlap=report.answer_overlap,
        finished_at=timestamp(report.finished_at),
        clamped_fields=report.clamped_fields,
    )


def evaluation_report_from_wire(message: pb.EvaluationReport, field: str = "report") -> EvaluationReport:
    """A report with an id, both results, settings, cost and the time it was finished."""
    checks = Checks(field)
    overlap = message.answer_overlap
    if not 0 <= overlap <= 1:
        checks.wrong("answer_overlap", overlap, "a share of 0 to 1")
    return checks.passed(
        EvaluationReport(
            evaluation_id=checks.text("evaluation_id", message.evaluation_id),
            before=checks.required(quiz_result_from_wire, message, "before"),
            after=checks.required(quiz_result_from_wire, message, "after"),
            retention_before=checks.nested(quiz_result_from_wire, message.retention_before, "retention_before"),
            retention_after=checks.nested(quiz_result_from_wire, message.retention_after, "retention_after"),
            effective_settings=checks.required(inner_loop_settings_from_wire, message, "effective_settings"),
            cost=checks.required(_cost_from_wire, message, "cost"),
            answer_overlap=overlap,
            finished_at=checks.time(message, "finished_at"),
            clamped_fields=tuple(message.clamped_fields),
        )
    )


def failure_to_wire(failure: Failure) -> pb.Failure:
    """The failure as a message."""
    return pb.Failure(message=failure.message, retryable=failure.retryable, exhausted=failure.exhausted)


def failure_from_wire(message: pb.Failure, field: str = "failure") -> Failure:
    """A failure; any content is one."""
    return Failure(message.message, message.retryable, message.exhausted)


def evaluation_outcome_to_wire(outcome: EvaluationOutcome) -> pb.EvaluationOutcome:
    """The outcome as a message."""
    if isinstance(outcome, EvaluationReport):
        return pb.EvaluationOutcome(report=evaluation_report_to_wire(outcome))
    if isinstance(outcome, Rejection):
        return pb.EvaluationOutcome(rejected=rejection_to_wire(outcome))
    return pb.EvaluationOutcome(failed=failure_to_wire(outcome))


def evaluation_outcome_from_wire(message: pb.EvaluationOutcome, field: str = "outcome") -> EvaluationOutcome:
    """A report, a rejection or a failure."""
    checks = Checks(field)
    kind = message.WhichOneof("outcome")
    if kind == "report":
        return evaluation_report_from_wire(message.report, checks.path("report"))
    if kind == "rejected":
        return rejection_from_wire(message.rejected, checks.path("rejected"))
    if kind is None:
        checks.wrong("outcome", "nothing", "report, rejected or failed")
    return checks.passed(failure_from_wire(message.failed, checks.path("failed")))


def evaluation_progress_to_wire(progress: EvaluationProgress) -> pb.EvaluationProgress:
    """The progress as a message."""
    message = pb.EvaluationProgress(
        steps_done=progress.steps_done, steps_total=progress.steps_total, loss=progress.loss
    )
    message.phase = _PHASE_VALUES[progress.phase]  # type: ignore[assignment]
    return message


def evaluation_progress_from_wire(message: pb.EvaluationProgress, field: str = "progress") -> EvaluationProgress:
    """Progress in a known phase; its loss may be NaN, as it is just before an edit is rejected as diverged."""
    checks = Checks(field)
    phase = checks.enum("phase", message.phase, _PHASES)
    steps_done, steps_total = (
        checks.count("steps_done", message.steps_done),
        checks.count("steps_total", message.steps_total),
    )
    return checks.passed(EvaluationProgress(phase, steps_done, steps_total, message.loss))


def evaluation_status_to_wire(status: EvaluationStatus) -> student_pb.GetEvaluationResponse:
    """The status as a message."""
    message = student_pb.GetEvaluationResponse(progress=evaluation_progress_to_wire(status.progress))
    message.state = _STATE_VALUES[status.state]  # type: ignore[assignment]
    if status.outcome is not None:
        message.outcome.CopyFrom(evaluation_outcome_to_wire(status.outcome))
    return message


def evaluation_status_from_wire(message: student_pb.GetEvaluationResponse, field: str = "status") -> EvaluationStatus:
    """A known state with progress; the outcome is there only when it is done."""
    checks = Checks(field)
    outcome = None
    if message.HasField("outcome"):
        outcome = checks.nested(evaluation_outcome_from_wire, message.outcome, "outcome")
    return checks.passed(
        EvaluationStatus(
            checks.enum("state", message.state, _STATES),
            checks.required(evaluation_progress_from_wire, message, "progress"),
            outcome,
        )
    )


def bounds_to_wire(bounds: Bounds) -> student_pb.Bounds:
    """The bounds as a message."""
    return student_pb.Bounds(
        min_learning_rate=bounds.min_learning_rate,
        max_learning_rate=bounds.max_learning_rate,
        min_epochs=bounds.min_epochs,
        max_epochs=bounds.max_epochs,
        min_rank=bounds.min_rank,
        max_rank=bounds.max_rank,
        max_document_tokens=bounds.max_document_tokens,
        max_documents=bounds.max_documents,
        max_steps=bounds.max_steps,
        clamp=bounds.clamp,
    )


def bounds_from_wire(message: student_pb.Bounds, field: str = "bounds") -> Bounds:
    """Bounds of which every upper end is above 0."""
    checks = Checks(field)
    return checks.passed(
        Bounds(
            min_learning_rate=checks.at_least_zero("min_learning_rate", message.min_learning_rate),
            max_learning_rate=checks.positive("max_learning_rate", message.max_learning_rate),
            min_epochs=checks.count("min_epochs", message.min_epochs),
            max_epochs=checks.count("max_epochs", message.max_epochs, least=1),
            min_rank=checks.count("min_rank", message.min_rank),
            max_rank=checks.count("max_rank", message.max_rank, least=1),
            max_document_tokens=checks.count("max_document_tokens", message.max_document_tokens, least=1),
            max_documents=checks.count("max_documents", message.max_documents, least=1),
            max_steps=checks.count("max_steps", message.max_steps, least=1),
            clamp=message.clamp,
        )
    )
