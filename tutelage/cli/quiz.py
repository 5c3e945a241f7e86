"""`tutelage quiz`: questions for documents that have none, made by the teacher, to be looked through by a person."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.connection import DEFAULT_ORCHESTRATOR, Orchestrator, orchestrator_client
from tutelage.cli.quiz_file import QuizFile, document_lines
from tutelage.domain.errors import Unavailable
from tutelage.domain.made_quiz import DEFAULT_CHECK, MADE, MadeQuiz, QuizCheck
from tutelage.domain.task import DocumentTask, Question, Quiz

if TYPE_CHECKING:
    from tutelage.client import OrchestratorClient
    from tutelage.domain.run import TaskWithQuiz


AT_ONCE = 16
"""Documents of one call: their questions are checked together."""
MET_S = 30.0
"""Seconds. A first call that breaks sooner met nobody who could make questions: that is told and not waited out."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0


class Where(StrEnum):
    """For which documents questions are made."""

    MISSING = "missing"
    BESIDE = "beside"
    INSTEAD = "instead"


@dataclasses.dataclass(frozen=True)
class Making:
    """How questions are made."""

    questions: int
    """Most for a document."""
    seed: int
    check: QuizCheck
    where: Where = Where.MISSING
    patience_s: float = 600.0
    """Seconds to wait, in all for one call, for an orchestrator or teacher that went away."""


def groups_of(tasks: Sequence[TaskWithQuiz], where: Where) -> Iterator[tuple[list[TaskWithQuiz], list[TaskWithQuiz]]]:
    """The tasks in their order, in groups; and of each group those for which questions are made, as many as one call's.

    What needs none goes with what is before or behind it.
    """
    group: list[TaskWithQuiz] = []
    wanting: list[TaskWithQuiz] = []
    for item in tasks:
        group.append(item)
        if isinstance(item.task.content, DocumentTask) and not (item.quiz.questions and where is Where.MISSING):
            wanting.append(item)
        if len(wanting) == AT_ONCE:
            yield group, wanting
            group, wanting = [], []
    if group:
        yield group, wanting


async def made_in_groups(
    client: OrchestratorClient, tasks: Sequence[TaskWithQuiz], making: Making
) -> AsyncIterator[tuple[list[TaskWithQuiz], dict[str, MadeQuiz]]]:
    """The tasks in their order, a group at a time with the questions they now have; and what was made, by task."""
    met = False
    for group, wanting in groups_of(tasks, making.where):
        made: dict[str, MadeQuiz] = {}
        if wanting:
            quizzes = await _made(client, wanting, making, met)
            made = {item.task.id: quiz for item, quiz in zip(wanting, quizzes, strict=True)}
            met = True
        yield [_asked(item, made.get(item.task.id), making.where) for item in group], made


async def _made(
    client: OrchestratorClient, wanting: Sequence[TaskWithQuiz], making: Making, met: bool
) -> Sequence[MadeQuiz]:
    """The quizzes of one group; Unavailable where nobody was `met` before, or all patience is spent."""
    tasks = [item.task for item in wanting]
    pause, waited, begun = FIRST_PAUSE_S, 0.0, time.monotonic()
    while True:
        try:
            return await client.make_quizzes(tasks, making.questions, seed=making.seed, check=making.check)
        except Unavailable as error:
            met = met or time.monotonic() - begun > MET_S
            # Waits are counted and not calls: one that breaks after an hour's work leaves patience for another.
            if not met or waited >= making.patience_s:
                raise
            typer.echo(f"no questions now ({error}); trying again", err=True)
        await asyncio.sleep(pause)
        waited += pause
        pause = min(pause * 2, LONGEST_PAUSE_S)


def _asked(item: TaskWithQuiz, made: MadeQuiz | None, where: Where) -> TaskWithQuiz:
    """The task with what was made for it."""
    if made is None:
        return item
    given = item.quiz.questions if where is Where.BESIDE else ()
    return dataclasses.replace(item, quiz=Quiz((*given, *new_questions(given, made.quiz.questions))))


def new_questions(given: Sequence[Question], made: Sequence[Question]) -> list[Question]:
    """Made questions that ask nothing which is asked already, nor for the same answer; their ids number on."""
    from tutelage.grading import normalise

    known = {normalise(each.text) for each in given} | {normalise(each.answer) for each in given}
    new = [each for each in made if not {normalise(each.text), normalise(each.answer)} & known]
    numbers = [
        int(number) for each in given if (number := each.id.removeprefix(MADE)) != each.id and number.isdecimal()
    ]
    first = max(numbers, default=0) + 1
    return [dataclasses.replace(each, id=f"{MADE}{number}") for number, each in enumerate(new, first)]


def quiz(
    documents: Annotated[Path, typer.Argument(metavar="DOCUMENTS", help="JSONL file; documents may lack questions.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; standard output if not given.")
    ] = None,
    questions: Annotated[int, typer.Option(min=1, max=24, help="Questions wanted for a document.")] = 6,
    where: Annotated[
        Where, typer.Option(help="Made where questions are missing, beside those that were given, or instead of them.")
    ] = Where.MISSING,
    check: Annotated[
        QuizCheck,
        typer.Option(
            help="What the teacher's first policy has to answer: `both`, with the text and not without; `unknown`, not "
            "without; `none`."
        ),
    ] = DEFAULT_CHECK,
    seed: Annotated[int, typer.Option(help="The same seed gives the same questions.")] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin the output anew; else what it has is kept, and gone on after.")
    ] = False,
    patience_s: Annotated[float, typer.Option(help="Seconds to wait for an orchestrator that went away.")] = 600.0,
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
) -> None:
    """Make questions for documents. Look through them: a model wrote them. Their ids begin with `made-`."""
    from tutelage.documents import read_tasks
    from tutelage.domain.errors import InvalidInput

    tasks = read_tasks(documents, unasked=True)
    for item in tasks:
        if not isinstance(item.task.content, DocumentTask):
            raise InvalidInput.of(f"{documents}: {item.task.id}", "a few-shot task", "documents: tasks bring their own")

    file: QuizFile | None = None
    # A pipe or a terminal holds nothing to go on after: it gets everything at the end, as standard output does.
    if output is not None and not (output.is_fifo() or output.is_char_device()):
        file = QuizFile(output, documents, anew=overwrite)
        there = file.ids(tasks)
        if there:
            typer.echo(
                f"{output}: {len(there)} of {len(tasks)} documents are there already and skipped; "
                "--overwrite begins anew",
                err=True,
            )
        tasks = [item for item in tasks if item.task.id not in there]

    async def call() -> list[TaskWithQuiz]:
        done: list[TaskWithQuiz] = []
        async with orchestrator_client(orchestrator) as client:
            async for group, made in made_in_groups(client, tasks, Making(questions, seed, check, where, patience_s)):
                if file is not None:
                    file.add(group)
                done += group
                for task_id, found in made.items():
                    why = f" ({found.told})" if found.told else ""
                    typer.echo(f"{task_id}: {len(found.quiz.questions)} of {questions} questions made{why}", err=True)
        return done

    done = asyncio.run(call())
    if output is None:
        typer.echo(document_lines(done), nl=False)
    elif file is None:
        output.write_text(document_lines(done), encoding="utf-8")
