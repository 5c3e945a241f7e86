"""A grader of a package that fails ends the evaluations that name it, as failures; those beside them go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest

import student.engine as student_engine
import student.quiz as quiz
from student.quiz import GraderFailed, Sitting, graded
from tests.student.outcomes import together
from tutelage import extensions
from tutelage.domain.errors import PreconditionFailed
from tutelage.domain.evaluation import EvaluationReport, Failure
from tutelage.domain.task import Question
from tutelage.extensions import GRADERS

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory

CALLS: list[str] = []
TOLD: list[tuple[str, tuple[str, ...], str]] = []
GIVEN: list[Callable[[int], Any]] = []
"""A function of the calls so far."""


def own(answer: str, gold: Sequence[str], question: str = "") -> Any:
    CALLS.append(answer)
    TOLD.append((answer, tuple(gold), question))
    return GIVEN[0](len(CALLS))


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (EntryPoint("own", f"{__name__}:own", GRADERS), EntryPoint("missing", f"{__name__}:NOT_THERE", GRADERS))
    monkeypatch.setattr(extensions, "_points", lambda group: points if group == GRADERS else ())
    monkeypatch.setattr(student_engine, "GRADERS", (*quiz.GRADERS, "own", "missing"))
    CALLS.clear()
    TOLD.clear()
    GIVEN[:] = [lambda calls: 0.5]


def fails(calls: int) -> float:
    return 1 / 0


BROKEN = [
    (fails, "ZeroDivisionError"),
    (lambda calls: 7.0, "7.0"),
    (lambda calls: -0.5, "-0.5"),
    (lambda calls: math.nan, "nan"),
    (lambda calls: None, "TypeError"),
]


@pytest.mark.parametrize(("grader", "reason"), BROKEN)
def test_what_is_no_score_of_0_to_1_is_the_graders_fault(grader: Callable[[int], Any], reason: str) -> None:
    GIVEN[:] = [grader]
    with pytest.raises(GraderFailed, match=f"grader 'own'.*'q'.*{reason}"):
        graded(Sitting((Question("q", "Who?", "me"),), ("own",)), ["me"], [None])


def test_a_grader_is_told_the_question() -> None:
    graded(Sitting((Question("q", "Who hung the lamp?", "me", aliases=("I",)),), ("own",)), ["me"], [None])
    assert TOLD == [("me", ("me", "I"), "Who hung the lamp?")]


def test_scores_are_plain_numbers() -> None:
    GIVEN[:] = [lambda calls: True]
    answers = graded(Sitting((Question("q", "Who?", "me"),), ("own",)), ["me"], [None])
    assert not isinstance(answers, ArithmeticError)
    (answer,) = answers
    assert answer.scores == {"own": 1.0}
    assert type(answer.scores["own"]) is float


@pytest.mark.parametrize("missing", [False, True], ids=["raises", "does not load"])
def test_a_grader_that_fails_before_the_training_ends_its_evaluation_alone(
    student: EngineFactory, make_key: KeyFactory, missing: bool
) -> None:
    engine = student(slots=3)
    GIVEN[:] = [fails]
    name = "missing" if missing else "own"
    keys = [make_key(engine, seed=i, graders=(name, "loglik") if i == 1 else ("contains", "loglik")) for i in range(3)]
    good, bad, other = together(engine, keys)
    assert isinstance(good, EvaluationReport), good
    assert isinstance(other, EvaluationReport), other
    assert isinstance(bad, Failure), bad
    assert not bad.retryable
    assert f"grader {name!r}" in bad.message
    assert ("NOT_THERE" if missing else "ZeroDivisionError") in bad.message


@pytest.mark.parametrize(("grader", "reason"), BROKEN[:2])
def test_a_grader_that_fails_after_the_training_ends_its_evaluation_alone(
    student: EngineFactory, make_key: KeyFactory, grader: Callable[[int], Any], reason: str
) -> None:
    engine = student(slots=3)
    # Three questions of the quiz and one of the retention quiz are answered before the training.
    GIVEN[:] = [lambda calls: 0.5 if calls <= 4 else grader(calls)]
    keys = [make_key(engine, seed=i, graders=("own", "loglik") if i == 1 else ("contains",)) for i in range(3)]
    good, bad, other = together(engine, keys)
    assert len(CALLS) > 4
    assert isinstance(good, EvaluationReport), good
    assert isinstance(other, EvaluationReport), other
    assert isinstance(bad, Failure), bad
    assert not bad.retryable
    assert "grader 'own'" in bad.message
    assert reason in bad.message
    # Nothing was stored: a fault is not final.
    GIVEN[:] = [lambda calls: 0.5]
    (again,) = together(engine, keys[1:2])
    assert isinstance(again, EvaluationReport)


def test_a_grader_out_of_memory_is_a_fault_of_the_machine_and_tried_again(
    student: EngineFactory, make_key: KeyFactory
) -> None:
    def full(calls: int) -> float:
        raise MemoryError

    engine = student(slots=2)
    GIVEN[:] = [full]
    good, bad = together(engine, [make_key(engine, graders=(name,)) for name in ("contains", "own")])
    assert isinstance(good, EvaluationReport), good
    assert isinstance(bad, Failure), bad
    assert bad.retryable
    assert "out of memory" in bad.message


def test_who_asks_for_answers_is_told_of_the_grader(student: EngineFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    GIVEN[:] = [fails]
    monkeypatch.setattr(student_engine, "GRADERS", ("own",))
    with pytest.raises(PreconditionFailed, match="grader 'own'"):
        student().answer([Question("q", "Who?", "me")])
