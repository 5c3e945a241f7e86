"""What teacher and students would refuse of a run once it is under way: they are asked before it begins.

They only count tokens for it. A service that does not answer, or is older than the question, holds no run up: what it
cannot do is then found when it is asked to do it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.plan import Across
from orchestrator.prompt_places import MISTAKES
from orchestrator.run_config import RunConfig
from orchestrator.student_profile import LONGEST, MOST_MISTAKES, Mistake
from orchestrator.students import Students
from orchestrator.teaching import addressed, informed
from tutelage.client import TeacherClient
from tutelage.domain.description import StudentDescription
from tutelage.domain.errors import FieldViolation, InvalidInput, TutelageError
from tutelage.domain.policy import Format
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import Quiz

logger = logging.getLogger(__name__)

CHECK_S = 60.0
"""Seconds that a service may take to count the tokens of a run's tasks."""
_LONG_MISTAKES = [Mistake(*["one word after another " * LONGEST] * 2)] * MOST_MISTAKES
"""As much as later rounds tell: a document that fits only beside less would fail the run with a round paid for."""
_TASK = re.compile(r"^tasks\[(\d+)\]")
_QUIZ = re.compile(r"^quizzes\[(\d+)\]")


@dataclass(frozen=True)
class Asked:
    """A run's settings and tasks; `places` are the indices by which the tasks are named."""

    config: RunConfig
    tasks: Sequence[TaskWithQuiz]
    places: Sequence[int]
    retention_quiz: Quiz


async def start_violations(
    asked: Asked,
    format: Format | None,
    teacher: TeacherClient,
    students: Students,
    named: Mapping[str, StudentDescription],
) -> list[FieldViolation]:
    """All that they would refuse, by the run's own fields; `format` is None where the run's is not known."""
    questions = [_students(asked, students, name) for name in named]
    if format is not None and named:
        questions.append(_teacher(asked, _formats(asked.config, format, named), teacher))
    return [item for found in await asyncio.gather(*questions) for item in found]


def without_known(known: Iterable[FieldViolation], found: Iterable[FieldViolation]) -> list[FieldViolation]:
    """Those found of fields of which nothing is known to be wrong yet; each is told once."""
    fields = {item.field for item in known}
    return list(dict.fromkeys(item for item in found if item.field not in fields))


def _formats(config: RunConfig, format: Format, named: Mapping[str, StudentDescription]) -> list[Format]:
    """What is written in: one format for all readers, or one for each."""
    if config.reward.across is Across.PER_STUDENT:
        written = [addressed(format, {name: student}, alone=True) for name, student in named.items()]
    else:
        written = [addressed(format, named, alone=False)]
    # In the first round none is known.
    mistakes = _LONG_MISTAKES if config.rounds > 1 else ()
    return [informed(each, mistakes) if MISTAKES in each.prompt else each for each in written]


async def _teacher(asked: Asked, formats: Sequence[Format], teacher: TeacherClient) -> list[FieldViolation]:
    config, found = asked.config, dict[str, FieldViolation]()
    for format in formats:
        try:
            await teacher.check_writing(
                [item.task for item in asked.tasks],
                format=format,
                candidates=config.candidates,
                sampling=config.sampling_settings(),
                timeout_s=CHECK_S,
            )
        except InvalidInput as error:
            for item in error.violations:
                # The prompts for several students differ by little: a document too long for one is too long for all.
                found.setdefault(item.field, _of_writing(item, asked.places))
        except TutelageError as error:
            logger.info("the teacher was not asked whether it can write for the run: %s", error)
    return [*found.values()]


def _of_writing(item: FieldViolation, places: Sequence[int]) -> FieldViolation:
    task = _TASK.match(item.field)
    field = f"tasks[{places[int(task[1])]}]{item.field[task.end() :]}" if task else f"config.{item.field}"
    return FieldViolation(field, item.value, item.allowed)


async def _students(asked: Asked, students: Students, name: str) -> list[FieldViolation]:
    """By the first replica that answers."""
    quizzes = [item.quiz for item in asked.tasks]
    try:
        clients = await students.clients(name)
    except TutelageError:
        return []
    for client in clients:
        try:
            await client.check_evaluations(
                asked.config.inner_loop_settings(), quizzes, asked.retention_quiz, timeout_s=CHECK_S
            )
        except InvalidInput as error:
            return [_of_evaluating(item, asked.places, name) for item in error.violations]
        except TutelageError as error:
            logger.info("student %s was not asked whether it can evaluate for the run: %s", name, error)
        else:
            return []
    return []


def _of_evaluating(item: FieldViolation, places: Sequence[int], student: str) -> FieldViolation:
    field, value = item.field, item.value
    if quiz := _QUIZ.match(field):
        field = f"tasks[{places[int(quiz[1])]}].quiz{field[quiz.end() :]}"
    elif field == "settings.adapt_last_layers":
        field, value = "config.inner_loop.adapt_layers", f"last-{value}"
    else:
        field = re.sub(r"^settings\b", "config.inner_loop", field)
    return FieldViolation(field, value, f"{item.allowed} (student {student!r})")
