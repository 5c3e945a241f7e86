"""What a prompt tells of a student: in a few words, on one line each, and never a gold answer."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.records import StoredEvaluation
from orchestrator.student_profile import (
    LONGEST,
    Mistake,
    about_the_same,
    described,
    mistakes_in,
    not_asked_by,
    told,
    wrong_before,
)
from tutelage.domain.evaluation import Answer, EvaluationReport, InnerLoopSettings, QuizResult, TrainingCost
from tutelage.domain.task import Demonstration, DocumentTask, FewShotTask, Question, Quiz, Task
from tutelage.grading.normalise import visible

QUIZ = Quiz(
    (Question("1", "Who founded Velm?", "Ada Thorne"), Question("2", "When?", "1402"), Question("3", "Why?", ""))
)


def report(*answers: str) -> EvaluationReport:
    before = QuizResult.of(tuple(Answer(str(place), text, {}) for place, text in enumerate(answers, 1)))
    empty = QuizResult()
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return EvaluationReport("e", before, empty, empty, empty, InnerLoopSettings(), TrainingCost(), 0.0, at)


def stored(round_: int, outcome: EvaluationReport | None, phase: str = "round") -> StoredEvaluation:
    return StoredEvaluation(f"e{round_}", "ada", phase, round_, "t", "edit", 0, "", "report", outcome=outcome)


def test_a_student_is_named_with_its_family_and_size() -> None:
    student: Any = SimpleNamespace(base_model="smollm2-135m-instruct", parameters=134_515_008)
    assert described("ada", student) == "ada (a smollm2-135m-instruct model of 135 million parameters)"
    student.parameters = 1_500
    assert described("ada", student) == "ada (a smollm2-135m-instruct model)"


def test_mistakes_are_what_was_said_and_wrong() -> None:
    assert wrong_before(report("It was Ada Thorne.", "In 1399", "  "), QUIZ) == [Mistake("When?", "In 1399")]
    assert wrong_before(report("", ""), QUIZ) == []


def test_no_question_of_the_documents_own_quiz_is_told() -> None:
    wrong = [Mistake("Who founded VELM", "Bo"), Mistake("Who built the mill?", "Cy")]
    assert not_asked_by(QUIZ, wrong) == wrong[1:]


def test_tasks_about_one_text_are_known() -> None:
    one = Task("1", DocumentTask("Velm", "Velm was founded in 1402."))
    assert about_the_same(one, Task("2", DocumentTask("The town", "Velm was  founded in 1402")))
    assert not about_the_same(one, Task("3", DocumentTask("Velm", "Velm burned.")))
    few_shot = FewShotTask("Add.", (Demonstration("1", "2"),))
    assert about_the_same(Task("4", few_shot), Task("5", few_shot))
    assert not about_the_same(one, Task("4", few_shot))


def test_only_rounds_that_were_complete_count() -> None:
    evaluations = [stored(2, report("Bo")), stored(1, None), stored(1, report("Cy"), phase="commit")]
    assert mistakes_in(evaluations, QUIZ, 2) == []
    assert mistakes_in(evaluations, QUIZ, 3) == [Mistake("Who founded Velm?", "Bo")]


@given(st.text(max_size=400), st.text(max_size=400))
def test_whatever_was_said_is_one_line_that_opens_nothing(question: str, answer: str) -> None:
    line = told([Mistake(question, answer)])
    assert line.splitlines() == [line] == [visible(line)]
    assert not set("<>|{}[]\\`") & set(line)
    assert len(line) <= 2 * (LONGEST + 3) + len('- Asked "" it said ""')
    assert line.count('"') == 4


def test_what_was_said_in_a_script_that_joins_its_letters_stays_as_it_is() -> None:
    said = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert said in told([Mistake("What?", f"\u202b{said}\u202c")])
