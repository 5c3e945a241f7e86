"""A student says before a run which settings and quizzes it would refuse, and answers nothing for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from student.engine import StudentEngine
from student.evaluation_check import check_evaluations
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.evaluation import EvaluationKey, InnerLoopSettings
from tutelage.domain.task import Question, Quiz
from tutelage.v1 import student_service_pb2 as pb
from tutelage.wire.evaluation import inner_loop_settings_to_wire
from tutelage.wire.task import quiz_to_wire

SETTINGS = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=4)
FITS = Quiz((Question("q1", "Who?", "Hamo Drysse"),))
LONG = Quiz((Question("q1", "Who?", "Hamo"), Question("q2", "why " * 400, "so")))


def header(settings: InnerLoopSettings = SETTINGS, retention: Quiz | None = None) -> pb.CheckEvaluationsRequest:
    message = pb.CheckEvaluationsHeader(
        settings=inner_loop_settings_to_wire(settings), retention_quiz=quiz_to_wire(retention or Quiz())
    )
    return pb.CheckEvaluationsRequest(header=message)


def of(*quizzes: Quiz) -> list[pb.CheckEvaluationsRequest]:
    return [pb.CheckEvaluationsRequest(quiz=quiz_to_wire(quiz)) for quiz in quizzes]


def refused(engine: StudentEngine, *messages: pb.CheckEvaluationsRequest) -> list[tuple[str, str, str]]:
    """Field, value and allowed of all that is refused; nothing where all is taken."""

    async def requests() -> AsyncIterator[pb.CheckEvaluationsRequest]:
        for message in messages:
            yield message

    try:
        asyncio.run(check_evaluations(requests(), engine))
    except InvalidInput as error:
        return [(item.field, item.value, item.allowed) for item in error.violations]
    return []


def test_what_can_be_evaluated_is_taken(student: Callable[..., StudentEngine]) -> None:
    engine = student()
    settings = replace(SETTINGS, target_modules=("q_proj", "v_proj"), adapt_last_layers=1)
    assert refused(engine, header(settings, FITS), *of(FITS, FITS)) == []


def test_all_is_told_at_once(student: Callable[..., StudentEngine]) -> None:
    engine = student()
    settings = replace(SETTINGS, rank=500, target_modules=("q_proj", "foo", "bar"), adapt_last_layers=99)
    found = refused(engine, header(settings, LONG), *of(FITS, LONG, Quiz()))
    assert [item[:2] for item in found] == [
        ("settings.rank", "500"),
        ("settings.target_modules", "foo"),
        ("settings.target_modules", "bar"),
        ("settings.adapt_last_layers", "99"),
        ("retention_quiz.questions[1].text", found[4][1]),
        ("quizzes[1].questions[1].text", found[5][1]),
        ("quizzes[2].questions", "nothing"),
    ]
    assert found[0][2] == "1 to 128"
    assert "q_proj" in found[1][2]
    assert "the layers of this model" in found[3][2]
    assert int(found[5][1].removesuffix(" tokens")) > 1600
    assert found[5][2].startswith("at most 512 tokens with 8 of an answer")


def test_one_header_comes_first(student: Callable[..., StudentEngine]) -> None:
    engine = student()
    for messages in ([], of(FITS), [header(), header()]):
        assert [item[0] for item in refused(engine, *messages)] == ["part"]


def test_an_evaluation_is_refused_for_all_its_faults_at_once(
    student: Callable[..., StudentEngine], make_key: Callable[..., EvaluationKey]
) -> None:
    engine = student()
    changes: dict[str, Any] = {
        "settings": replace(SETTINGS, rank=500, target_modules=("foo",)), "quiz": LONG, "graders": ("judge",),
    }  # fmt: skip
    with pytest.raises(InvalidInput) as caught:
        engine.check(make_key(engine, **changes))
    assert [item.field for item in caught.value.violations] == [
        "key.graders",
        "settings.rank",
        "settings.target_modules",
        "key.quiz.questions[1].text",
    ]


def test_a_grader_given_twice_is_refused(
    student: Callable[..., StudentEngine], make_key: Callable[..., EvaluationKey]
) -> None:
    """A million of them, of which a message has room, would grade for a quarter of a minute while all others wait."""
    engine = student()
    with pytest.raises(InvalidInput) as caught:
        engine.check(make_key(engine, graders=("exact", "loglik", "exact")))
    assert caught.value.violations == (FieldViolation("key.graders", "3 names", "each name once"),)
