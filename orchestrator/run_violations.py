"""Everything wrong with a run before it starts: its tasks, and what it asks of services that do not have it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.prompt_places import place_violations
from orchestrator.run_config import InlineFormat, InnerLoopConfig, RunConfig
from tutelage.domain.description import StudentDescription, TeacherDescription
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.policy import WITH_DIRECTIVES, Format, format_by_name
from tutelage.domain.reward import FORMULAS
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask, Quiz
from tutelage.extensions import why_unusable


def resolve_format(config: RunConfig, teacher: TeacherDescription) -> Format:
    """The run's own format, or the teacher's by that name; InvalidInput lists what the teacher has."""
    if isinstance(config.format, InlineFormat):
        return Format(**dict(config.format))
    if found := format_by_name(config.format, teacher.formats):
        return found
    names = ", ".join(known.name for known in teacher.formats) or "none"
    allowed = f"one of the teacher's formats ({names}), with {WITH_DIRECTIVES} behind it or without, or a mapping"
    raise InvalidInput.of("config.format", config.format, allowed)


def task_violations(tasks: Sequence[TaskWithQuiz], retention: Quiz) -> list[FieldViolation]:
    """Everything wrong with the tasks: none at all, ids that repeat, empty quizzes, questions without answer."""
    found = [] if tasks else [FieldViolation("tasks", "0 tasks", "at least one task with a quiz")]
    seen: dict[str, int] = {}
    for index, item in enumerate(tasks):
        where = f"tasks[{index}]"
        if not 1 <= len(item.task.id) <= 200 or not {"/", "\0"}.isdisjoint(item.task.id):
            found.append(FieldViolation(f"{where}.task.id", item.task.id, "1 to 200 characters without '/' and NUL"))
        if item.task.id in seen:
            found.append(
                FieldViolation(
                    f"{where}.task.id", item.task.id, f"an id of its own (tasks[{seen[item.task.id]}] has it)"
                )
            )
        seen.setdefault(item.task.id, index)
        if isinstance(item.task.content, DocumentTask) and not any(map(str.isalnum, item.task.content.text)):
            shown, allowed = item.task.content.text.strip()[:40], "a text with a letter or a digit"
            found.append(FieldViolation(f"{where}.task.document.text", shown, f"{allowed} (task {item.task.id!r})"))
        if not item.quiz.questions:
            found.append(FieldViolation(f"{where}.quiz", "0 questions", f"at least one (task {item.task.id!r})"))
        found += _quiz_violations(f"{where}.quiz", item.quiz)
    return found + _quiz_violations("retention_quiz", retention)


def _quiz_violations(where: str, quiz: Quiz) -> list[FieldViolation]:
    found = []
    ids: set[str] = set()
    for index, question in enumerate(quiz.questions):
        field = f"{where}.questions[{index}]"
        if not question.text.strip():
            found.append(FieldViolation(f"{field}.text", question.text, "a question"))
        if not question.answer.strip():
            found.append(FieldViolation(f"{field}.answer", question.answer, "a gold answer"))
        if question.id in ids:
            found.append(FieldViolation(f"{field}.id", question.id, "unique within its quiz"))
        ids.add(question.id)
    return found


def service_violations(
    config: RunConfig, teacher: TeacherDescription, students: dict[str, StudentDescription]
) -> list[FieldViolation]:
    """What the run asks of teacher and students that they do not have."""
    found = formula_violations(config.reward.formula)
    if config.update.when != "never" and config.update.algorithm not in teacher.algorithms:
        allowed = "one of the teacher's algorithms: " + (", ".join(teacher.algorithms) or "none")
        found.append(FieldViolation("config.update.algorithm", config.update.algorithm, allowed))
    try:
        prompt = resolve_format(config, teacher).prompt
        own = isinstance(config.format, InlineFormat)
        found += place_violations(prompt, "config.format.prompt" if own else "config.format")
    except InvalidInput as error:
        found += error.violations
    for name, student in students.items():
        for index, grader in enumerate(config.graders):
            if grader not in student.graders:
                allowed = f"one of student {name!r}'s graders: {', '.join(student.graders)}"
                found.append(FieldViolation(f"config.graders[{index}]", grader, allowed))
        found += _bound_violations(name, config.inner_loop, student)
    return found


def formula_violations(formula: str, field: str = "config.reward.formula") -> list[FieldViolation]:
    """What is wrong with a formula of the reward; looked at where it is used, for clients need not have its package."""
    reason = ""
    if formula and formula not in FORMULAS:
        reason = "empty, or an installed package's: " + (", ".join(FORMULAS) or "there is none")
    elif formula and (unusable := why_unusable(FORMULAS, formula)):
        reason = f"empty, or a formula that can be used; {unusable}"
    return [FieldViolation(field, formula, reason)] if reason else []


def _bound_violations(name: str, loop: InnerLoopConfig, student: StudentDescription) -> list[FieldViolation]:
    bounds = student.bounds
    ranges: list[tuple[str, float, float, float]] = [
        ("learning_rate", loop.learning_rate, bounds.min_learning_rate, bounds.max_learning_rate),
        ("epochs", loop.epochs, bounds.min_epochs, bounds.max_epochs),
        ("rank", loop.rank, bounds.min_rank, bounds.max_rank),
    ]
    return [
        FieldViolation(f"config.inner_loop.{field}", str(value), f"{low} to {high} (bounds of student {name!r})")
        for field, value, low, high in ranges
        if not low <= value <= high and not bounds.clamp
    ]
