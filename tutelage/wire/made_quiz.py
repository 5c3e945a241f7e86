"""Made quizzes on the wire, and how they are checked."""

from __future__ import annotations

from collections.abc import Iterable

from tutelage.domain.made_quiz import DEFAULT_CHECK, Dropped, MadeQuiz, QuizCheck
from tutelage.domain.task import Task
from tutelage.v1 import orchestrator_service_pb2 as pb
from tutelage.wire.checks import INT64_MAX, Checks, fitting, reverse
from tutelage.wire.task import quiz_from_wire, quiz_to_wire, task_to_wire

_CHECKS: dict[int, QuizCheck] = {
    pb.QUIZ_CHECK_NONE: QuizCheck.NONE,
    pb.QUIZ_CHECK_UNKNOWN: QuizCheck.UNKNOWN,
    pb.QUIZ_CHECK_BOTH: QuizCheck.BOTH,
}
_CHECK_VALUES = reverse(_CHECKS)


def quiz_check_from_wire(value: int, field: str = "check") -> QuizCheck:
    """The check; the default where none is named."""
    if value == pb.QUIZ_CHECK_UNSPECIFIED:
        return DEFAULT_CHECK
    checks = Checks("")
    return checks.passed(checks.enum(field, value, _CHECKS))


def made_quiz_to_wire(item: MadeQuiz) -> pb.MadeQuiz:
    """The quiz with what was dropped as a message."""
    dropped = {reason.value: fitting("dropped", count) for reason, count in item.dropped.items()}
    return pb.MadeQuiz(quiz=quiz_to_wire(item.quiz), dropped=dropped, refused=item.refused)


def made_quiz_from_wire(message: pb.MadeQuiz, field: str = "made_quiz") -> MadeQuiz:
    """The quiz with what was dropped; a reason that is not known here is left out."""
    checks = Checks(field)
    counts = {
        reason: checks.count("dropped", message.dropped[reason]) for reason in Dropped if reason in message.dropped
    }
    return checks.passed(MadeQuiz(checks.nested(quiz_from_wire, message.quiz, "quiz"), counts, message.refused))


def make_quizzes_to_wire(tasks: Iterable[Task], questions: int, seed: int, check: QuizCheck) -> pb.MakeQuizzesRequest:
    """What is asked for as a message."""
    request = pb.MakeQuizzesRequest(
        tasks=[task_to_wire(task) for task in tasks],
        questions=fitting("questions", questions),
        seed=fitting("seed", seed, INT64_MAX),
    )
    request.check = _CHECK_VALUES[check]  # type: ignore[assignment]
    return request


def made_quizzes_from_wire(message: pb.MakeQuizzesResponse) -> tuple[MadeQuiz, ...]:
    """The quizzes in the order of their tasks."""
    checks = Checks("")
    return checks.passed(checks.each(made_quiz_from_wire, message.quizzes, "quizzes"))
