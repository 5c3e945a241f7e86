"""Whether a student would evaluate with a run's settings and quizzes: told before anything is trained or answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Protocol

from student.bank_adapter import Projection, targeted
from student.bounds import check_settings
from student.lower_layers import first_adapted
from student.quiz import check_quiz
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.evaluation import Bounds, InnerLoopSettings
from tutelage.domain.task import Quiz
from tutelage.models.loading import LoadedModel
from tutelage.v1 import student_service_pb2 as pb
from tutelage.wire.evaluation import inner_loop_settings_from_wire
from tutelage.wire.task import quiz_from_wire, required_quiz_from_wire


class Refusing(Protocol):
    """Who knows what is wrong with settings and quizzes; safe to call from any thread."""

    def setting_violations(self, settings: InnerLoopSettings) -> list[FieldViolation]: ...

    def quiz_violations(self, quiz: Quiz, field: str) -> list[FieldViolation]: ...


def setting_violations(
    model: Any, projections: Sequence[Projection], settings: InnerLoopSettings, bounds: Bounds
) -> list[FieldViolation]:
    """What a model cannot do with the settings: out of bounds, or naming layers and projections that it has not."""
    found = _violations(lambda: check_settings(settings, bounds))
    fewer = _violations(lambda: first_adapted(model, settings.adapt_last_layers))
    first = 0 if fewer else first_adapted(model, settings.adapt_last_layers)
    for name in dict.fromkeys(settings.target_modules):
        found += _violations(partial(targeted, projections, (name,), first))
    return found + fewer


def quiz_violations(loaded: LoadedModel, quiz: Quiz, max_new_tokens: int, field: str) -> list[FieldViolation]:
    """Questions without an answer; where all have one, those that do not fit the context."""
    found = [
        FieldViolation(f"{field}.questions[{i}].answer", question.answer, "an answer that is not empty")
        for i, question in enumerate(quiz.questions)
        if not question.answer.strip()
    ]
    return found or _violations(lambda: check_quiz(loaded, quiz.questions, max_new_tokens, field))


async def check_evaluations(
    requests: AsyncIterator[pb.CheckEvaluationsRequest], student: Refusing
) -> pb.CheckEvaluationsResponse:
    """InvalidInput with all that the student would refuse; a quiz is named `quizzes[i]`."""
    wrong: list[FieldViolation] = []
    begun, count = False, 0
    async for request in requests:
        part = request.WhichOneof("part")
        if begun == (part == "header"):
            raise InvalidInput.of("part", part or "nothing", "one header, then quizzes")
        field, quiz_of, message = f"quizzes[{count}]", required_quiz_from_wire, request.quiz
        if part == "header":
            begun = True
            settings = inner_loop_settings_from_wire(request.header.settings)
            wrong += await asyncio.to_thread(student.setting_violations, settings)
            field, quiz_of, message = "retention_quiz", quiz_from_wire, request.header.retention_quiz
        try:
            wrong += await asyncio.to_thread(student.quiz_violations, quiz_of(message, field), field)
        except InvalidInput as error:
            wrong += error.violations
        count += part == "quiz"
    if not begun:
        raise InvalidInput.of("part", "nothing", "one header, then quizzes")
    if wrong:
        raise InvalidInput(wrong)
    return pb.CheckEvaluationsResponse()


def _violations(check: Callable[[], object]) -> list[FieldViolation]:
    try:
        check()
    except InvalidInput as error:
        return list(error.violations)
    return []
