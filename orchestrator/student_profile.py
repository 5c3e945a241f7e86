"""What a prompt tells the teacher of the student that it writes for: its name, family and size, and what it got wrong.

What it got wrong is told of other documents only, never of a task about the same text or a question that the document's
own quiz asks too, and of rounds that were complete when this one began, so that a run asks the same again after a
restart. Gold answers are never told. A student's answers are untrusted: they become one short line without the signs
that turn markers and a prompt's places are made of.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.records import StoredEvaluation
from tutelage.domain.description import StudentDescription
from tutelage.domain.evaluation import EvaluationReport
from tutelage.domain.task import DocumentTask, Quiz, Task
from tutelage.grading import grade, normalise
from tutelage.grading.normalise import visible

MOST_MISTAKES = 3
LONGEST = 120
"""Characters of a question or an answer."""

_UNSAFE = re.compile(r"[<>|{}\[\]\"\\`]|[^\S ]|[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Mistake:
    """A question about another document, and what the untouched student said."""

    question: str
    answer: str


def described(name: str, student: StudentDescription) -> str:
    """A student in a few words."""
    size = f" of {student.parameters / 1e6:,.0f} million parameters" if student.parameters >= 1e6 else ""
    return f"{name} (a {student.base_model} model{size})"


def mistakes_in(evaluations: Iterable[StoredEvaluation], quiz: Quiz, before_round: int) -> list[Mistake]:
    """What the student answered wrongly before it was trained, by the first report of a round before `before_round`."""
    reports = sorted(
        (item for item in evaluations if item.phase == "round" and item.round < before_round),
        key=lambda item: (item.round, item.evaluation_id),
    )
    outcomes = [item.outcome for item in reports if isinstance(item.outcome, EvaluationReport)]
    return wrong_before(outcomes[0], quiz) if outcomes else []


def wrong_before(report: EvaluationReport, quiz: Quiz) -> list[Mistake]:
    """What was answered, and wrongly, before the training that the report is of."""
    questions = {question.id: question for question in quiz.questions}
    wrong = []
    for answer in report.before.answers:
        question = questions.get(answer.question_id)
        if question is None or not answer.text.strip():
            continue
        if grade("lenient", answer.text, [question.answer, *question.aliases], question.text) < 1:
            wrong.append(Mistake(question.text, answer.text))
    return wrong


def about_the_same(one: Task, other: Task) -> bool:
    """Whether two tasks have one text."""
    mine, theirs = one.content, other.content
    if isinstance(mine, DocumentTask) and isinstance(theirs, DocumentTask):
        return normalise(mine.text) == normalise(theirs.text)
    return mine == theirs


def not_asked_by(quiz: Quiz, mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Those about questions that this quiz does not ask: two tasks may share a question."""
    asked = {normalise(question.text) for question in quiz.questions}
    return [mistake for mistake in mistakes if normalise(mistake.question) not in asked]


def told(mistakes: Sequence[Mistake]) -> str:
    """Mistakes as lines of a prompt; a word where none is known."""
    if not mistakes:
        return "none known yet"
    return "\n".join(f'- Asked "{_line(each.question)}" it said "{_line(each.answer)}"' for each in mistakes)


def _line(text: str) -> str:
    plain = " ".join(_UNSAFE.sub(" ", visible(text)).split())
    return plain if len(plain) <= LONGEST else plain[:LONGEST].rstrip() + "..."
