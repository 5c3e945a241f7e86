"""Clients of a student, asynchronous and blocking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence

from tutelage.client.connection import LONG_S, QUICK_S, WORK_S, AsyncConnection, SyncConnection
from tutelage.domain.description import Adapter, EvaluationProgress, EvaluationStatus, StudentDescription
from tutelage.domain.evaluation import Answer, EvaluationKey, EvaluationOutcome, InnerLoopSettings, QuizResult
from tutelage.domain.task import Question, Quiz
from tutelage.rpc.config import ChannelSettings
from tutelage.v1 import student_service_pb2 as pb
from tutelage.v1.student_service_pb2_grpc import StudentServiceStub
from tutelage.wire.checks import Checks
from tutelage.wire.description import adapter_from_wire, student_description_from_wire
from tutelage.wire.evaluation import (
    answer_from_wire,
    evaluation_key_to_wire,
    evaluation_outcome_from_wire,
    evaluation_progress_from_wire,
    evaluation_status_from_wire,
    inner_loop_settings_to_wire,
    quiz_result_from_wire,
)
from tutelage.wire.task import question_to_wire, quiz_to_wire


def _event(message: pb.EvaluateResponse) -> EvaluationProgress | EvaluationOutcome:
    if message.WhichOneof("event") == "progress":
        return evaluation_progress_from_wire(message.progress)
    return evaluation_outcome_from_wire(message.outcome)


Committed = tuple[Adapter, QuizResult, QuizResult]
"""A version that was stored, the quiz and the retention quiz as it answers them."""


def _committed(message: pb.CommitResponse) -> Committed:
    results = quiz_result_from_wire(message.quiz, "quiz"), quiz_result_from_wire(message.retention, "retention")
    return adapter_from_wire(message.adapter), *results


def _answers(message: pb.AnswerResponse) -> tuple[Answer, ...]:
    checks = Checks("")
    return checks.passed(checks.each(answer_from_wire, message.answers, "answers"))


def _adapters(message: pb.ListAdaptersResponse) -> tuple[Adapter, ...]:
    checks = Checks("")
    return checks.passed(checks.each(adapter_from_wire, message.adapters, "adapters"))


def _cancelled(message: pb.CancelEvaluationResponse) -> bool:
    return message.cancelled


def _nothing(message: object) -> None:
    return None


def _evaluate(key: EvaluationKey, lease_s: float, run_id: str) -> pb.EvaluateRequest:
    return pb.EvaluateRequest(key=evaluation_key_to_wire(key), lease_s=lease_s, run_id=run_id)


def _check(
    settings: InnerLoopSettings, quizzes: Iterable[Quiz], retention: Quiz
) -> Iterator[pb.CheckEvaluationsRequest]:
    header = pb.CheckEvaluationsHeader(
        settings=inner_loop_settings_to_wire(settings), retention_quiz=quiz_to_wire(retention)
    )
    yield pb.CheckEvaluationsRequest(header=header)
    for quiz in quizzes:
        yield pb.CheckEvaluationsRequest(quiz=quiz_to_wire(quiz))


def _answer(questions: Sequence[Question], adapter_version: str, max_new_tokens: int) -> pb.AnswerRequest:
    messages = [question_to_wire(question) for question in questions]
    return pb.AnswerRequest(adapter_version=adapter_version, questions=messages, max_new_tokens=max_new_tokens)


class StudentClient(AsyncConnection):
    """A student, asynchronously; every method raises the domain's errors."""

    def __init__(self, settings: ChannelSettings) -> None:
        super().__init__(settings)
        self._stub = StudentServiceStub(self._channel)

    async def describe(self, *, timeout_s: float = QUICK_S) -> StudentDescription:
        """What it is and accepts."""
        request = pb.StudentServiceDescribeRequest()
        return await self._call(self._stub.Describe, request, student_description_from_wire, timeout_s)

    async def check_evaluations(
        self,
        settings: InnerLoopSettings,
        quizzes: Iterable[Quiz],
        retention_quiz: Quiz,
        *,
        timeout_s: float = WORK_S,
    ) -> None:
        """InvalidInput names every field that evaluations with these would be refused for; nothing is answered."""
        messages = _check(settings, quizzes, retention_quiz)
        await self._call(self._stub.CheckEvaluations, messages, _nothing, timeout_s)

    def evaluate(
        self, key: EvaluationKey, *, lease_s: float = 0, run_id: str = "", timeout_s: float = LONG_S
    ) -> AsyncIterator[EvaluationProgress | EvaluationOutcome]:
        """Progress, then the outcome; starts, attaches to or reads the evaluation of that id."""
        return self._stream(self._stub.Evaluate, _evaluate(key, lease_s, run_id), _event, timeout_s)

    async def get_evaluation(self, evaluation_id: str, *, timeout_s: float = QUICK_S) -> EvaluationStatus:
        """How an evaluation stands; NotFound when there is none of that id."""
        request = pb.GetEvaluationRequest(evaluation_id=evaluation_id)
        return await self._call(self._stub.GetEvaluation, request, evaluation_status_from_wire, timeout_s)

    async def cancel_evaluation(self, evaluation_id: str, *, timeout_s: float = QUICK_S) -> bool:
        """Stops an evaluation; False when it had ended before."""
        request = pb.CancelEvaluationRequest(evaluation_id=evaluation_id)
        return await self._call(self._stub.CancelEvaluation, request, _cancelled, timeout_s)

    async def commit(self, evaluation_id: str, *, timeout_s: float = WORK_S) -> Committed:
        """Keeps an evaluation's weights; the new version, and the quiz and the retention quiz as it answers them."""
        request = pb.CommitRequest(evaluation_id=evaluation_id)
        return await self._call(self._stub.Commit, request, _committed, timeout_s)

    async def answer(
        self,
        questions: Sequence[Question],
        *,
        adapter_version: str,
        max_new_tokens: int = 0,
        timeout_s: float = WORK_S,
    ) -> tuple[Answer, ...]:
        """Answers in the questions' order; an empty version means the untouched base model."""
        request = _answer(questions, adapter_version, max_new_tokens)
        return await self._call(self._stub.Answer, request, _answers, timeout_s)

    async def list_adapters(self, *, timeout_s: float = QUICK_S) -> tuple[Adapter, ...]:
        """The versions it keeps."""
        return await self._call(self._stub.ListAdapters, pb.ListAdaptersRequest(), _adapters, timeout_s)

    async def delete_adapter(self, version: str, *, timeout_s: float = QUICK_S) -> None:
        """Deletes a version."""
        await self._call(self._stub.DeleteAdapter, pb.DeleteAdapterRequest(version=version), _nothing, timeout_s)


class SyncStudentClient(SyncConnection):
    """A student, blocking; the methods of `StudentClient`."""

    def __init__(self, settings: ChannelSettings) -> None:
        super().__init__(settings)
        self._stub = StudentServiceStub(self._channel)

    def describe(self, *, timeout_s: float = QUICK_S) -> StudentDescription:
        """What it is and accepts."""
        request = pb.StudentServiceDescribeRequest()
        return self._call(self._stub.Describe, request, student_description_from_wire, timeout_s)

    def check_evaluations(
        self,
        settings: InnerLoopSettings,
        quizzes: Iterable[Quiz],
        retention_quiz: Quiz,
        *,
        timeout_s: float = WORK_S,
    ) -> None:
        """InvalidInput names every field that evaluations with these would be refused for; nothing is answered."""
        messages = _check(settings, quizzes, retention_quiz)
        self._call(self._stub.CheckEvaluations, messages, _nothing, timeout_s)

    def evaluate(
        self, key: EvaluationKey, *, lease_s: float = 0, run_id: str = "", timeout_s: float = LONG_S
    ) -> Generator[EvaluationProgress | EvaluationOutcome, None, None]:
        """Progress, then the outcome; starts, attaches to or reads the evaluation of that id."""
        return self._stream(self._stub.Evaluate, _evaluate(key, lease_s, run_id), _event, timeout_s)

    def get_evaluation(self, evaluation_id: str, *, timeout_s: float = QUICK_S) -> EvaluationStatus:
        """How an evaluation stands; NotFound when there is none of that id."""
        request = pb.GetEvaluationRequest(evaluation_id=evaluation_id)
        return self._call(self._stub.GetEvaluation, request, evaluation_status_from_wire, timeout_s)

    def cancel_evaluation(self, evaluation_id: str, *, timeout_s: float = QUICK_S) -> bool:
        """Stops an evaluation; False when it had ended before."""
        request = pb.CancelEvaluationRequest(evaluation_id=evaluation_id)
        return self._call(self._stub.CancelEvaluation, request, _cancelled, timeout_s)

    def commit(self, evaluation_id: str, *, timeout_s: float = WORK_S) -> Committed:
        """Keeps an evaluation's weights; the new version, and the quiz and the retention quiz as it answers them."""
        return self._call(self._stub.Commit, pb.CommitRequest(evaluation_id=evaluation_id), _committed, timeout_s)

    def answer(
        self,
        questions: Sequence[Question],
        *,
        adapter_version: str,
        max_new_tokens: int = 0,
        timeout_s: float = WORK_S,
    ) -> tuple[Answer, ...]:
        """Answers in the questions' order; an empty version means the untouched base model."""
        return self._call(self._stub.Answer, _answer(questions, adapter_version, max_new_tokens), _answers, timeout_s)

    def list_adapters(self, *, timeout_s: float = QUICK_S) -> tuple[Adapter, ...]:
        """The versions it keeps."""
        return self._call(self._stub.ListAdapters, pb.ListAdaptersRequest(), _adapters, timeout_s)

    def delete_adapter(self, version: str, *, timeout_s: float = QUICK_S) -> None:
        """Deletes a version."""
        self._call(self._stub.DeleteAdapter, pb.DeleteAdapterRequest(version=version), _nothing, timeout_s)
