"""Made quizzes cross the wire with what was dropped; unknown reasons are left out, what cannot be is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.domain.errors import InvalidInput
from tutelage.domain.made_quiz import DEFAULT_CHECK, Dropped, MadeQuiz, QuizCheck
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.v1 import orchestrator_service_pb2 as pb
from tutelage.wire.made_quiz import (
    made_quiz_from_wire,
    made_quiz_to_wire,
    made_quizzes_from_wire,
    make_quizzes_to_wire,
    quiz_check_from_wire,
)

QUIZ = Quiz((Question("made-1", "What burns?", "wax", "Lamp", support="The wax burns."),))


@given(st.dictionaries(st.sampled_from(Dropped), st.integers(0, 2**31 - 1)), st.text(max_size=20))
def test_a_made_quiz(dropped: dict[Dropped, int], refused: str) -> None:
    made = MadeQuiz(QUIZ, dropped, refused)
    wire = made_quiz_to_wire(made).SerializeToString()
    (back,) = made_quizzes_from_wire(pb.MakeQuizzesResponse(quizzes=[pb.MadeQuiz.FromString(wire)]))
    assert back == made
    assert back.quiz.questions[0].support == "The wax burns."


@pytest.mark.parametrize("check", list(QuizCheck))
def test_a_request_names_its_check(check: QuizCheck) -> None:
    request = make_quizzes_to_wire([Task("t", DocumentTask("Lamp", "It burns."))], 6, 3, check)
    assert (request.tasks[0].document.title, request.questions, request.seed) == ("Lamp", 6, 3)
    assert quiz_check_from_wire(request.check) is check


def test_a_request_without_a_check_asks_for_the_default_and_an_unknown_one_is_refused() -> None:
    assert quiz_check_from_wire(pb.MakeQuizzesRequest().check) is DEFAULT_CHECK
    with pytest.raises(InvalidInput, match=r"check.*none, unknown, both"):
        quiz_check_from_wire(9)


def test_counts_of_reasons_that_are_not_known_here_are_left_out() -> None:
    message = pb.MadeQuiz(dropped={"form": 2, "too_kind": 4})
    assert made_quiz_from_wire(message) == MadeQuiz(Quiz(), {Dropped.FORM: 2})
    with pytest.raises(InvalidInput, match="dropped"):
        made_quiz_from_wire(pb.MadeQuiz(dropped={"form": -1}))


def test_what_is_told_of_it() -> None:
    assert MadeQuiz(QUIZ).told == ""
    assert MadeQuiz(QUIZ, {Dropped.FORM: 2, Dropped.KNOWN: 1}).told == "dropped: 2 form, 1 known"
    assert MadeQuiz(Quiz(), {}, "too long").told == "too long"
