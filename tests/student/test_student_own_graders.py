"""A grader of a package that fails ends the evaluations that name it, as failures; those beside them go on."""

from __future__ import annotations

import math
import threading
from importlib.metadata import EntryPoint

import pytest

import student.engine as student_engine
from student.quiz import GraderFailed, Sitting, graded
from tutelage import extensions
from tutelage.domain.errors import PreconditionFailed
from tutelage.domain.evaluation import EvaluationReport, Failure
from tutelage.domain.task import Question
from tutelage.extensions import GRADERS

CALLS = []
TOLD = []
GIVEN = []
"""A function of the calls so far."""


def own(answer, gold, question=""):
    CALLS.append(answer)
    TOLD.append((answer, tuple(gold), question))
    return GIVEN[0](len(CALLS))


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    points = (EntryPoint("own", f"{__name__}:own", GRADERS), EntryPoint("missing", f"{__name__}:NOT_THERE", GRADERS))
    monkeypatch.setattr(extensions, "_points", lambda group: points if group == GRADERS else ())
    monkeypatch.setattr(student_engine, "GRADERS", (*student_engine.GRADERS, "own", "missing"))
    CALLS.clear()
    TOLD.clear()
    GIVEN[:] = [lambda calls: 0.5]


def fails(calls):
    return 1 / 0


BROKEN = [
    (fails, "ZeroDivisionError"),
    (lambda calls: 7.0, "7.0"),
    (lambda calls: -0.5, "-0.5"),
    (lambda calls: math.nan, "nan"),
    (lambda calls: None, "TypeError"),
]


@pytest.mark.parametrize(("grader", "reason"), BROKEN)
def test_what_is_no_score_of_0_to_1_is_the_graders_fault(grader, reason):
    GIVEN[:] = [grader]
    with pytest.raises(GraderFailed, match=f"grader 'own'.*'q'.*{reason}"):
        graded(Sitting((Question("q", "Who?", "me"),), ("own",)), ["me"], [None])


def test_a_grader_is_told_the_question():
    graded(Sitting((Question("q", "Who hung the lamp?", "me", aliases=("I",)),), ("own",)), ["me"], [None])
    assert TOLD == [("me", ("me", "I"), "Who hung the lamp?")]


def test_scores_are_plain_numbers():
    GIVEN[:] = [lambda calls: True]
    ((answer,),) = (graded(Sitting((Question("q", "Who?", "me"),), ("own",)), ["me"], [None]),)
    assert answer.scores == {"own": 1.0}
    assert type(answer.scores["own"]) is float


def together(engine, keys):
    """The outcomes of evaluations that enter the room at once."""
    gate, entered = threading.Event(), threading.Event()
    engine._scheduler.call(lambda: (entered.set(), gate.wait(60)))
    assert entered.wait(60)
    jobs = [engine.evaluate(key, lease_s=120) for key in keys]
    gate.set()
    for job in jobs:
        assert job.done.wait(120)
    return [job.outcome for job in jobs]


@pytest.mark.parametrize("missing", [False, True], ids=["raises", "does not load"])
def test_a_grader_that_fails_before_the_training_ends_its_evaluation_alone(student, make_key, missing):
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
def test_a_grader_that_fails_after_the_training_ends_its_evaluation_alone(student, make_key, grader, reason):
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


def test_a_grader_out_of_memory_is_a_fault_of_the_machine_and_tried_again(student, make_key):
    def full(calls):
        raise MemoryError

    engine = student(slots=2)
    GIVEN[:] = [full]
    good, bad = together(engine, [make_key(engine, graders=(name,)) for name in ("contains", "own")])
    assert isinstance(good, EvaluationReport), good
    assert isinstance(bad, Failure), bad
    assert bad.retryable
    assert "out of memory" in bad.message


def test_who_asks_for_answers_is_told_of_the_grader(student, monkeypatch):
    GIVEN[:] = [fails]
    monkeypatch.setattr(student_engine, "GRADERS", ("own",))
    with pytest.raises(PreconditionFailed, match="grader 'own'"):
        student().answer([Question("q", "Who?", "me")])
