"""`tutelage quiz`: questions for documents that have none, made by the teacher, to be looked through by a person."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.connection import DEFAULT_ORCHESTRATOR, Orchestrator, orchestrator_client
from tutelage.domain.made_quiz import DEFAULT_CHECK, MADE, MadeQuiz, QuizCheck
from tutelage.domain.task import DocumentTask, Question, Quiz

if TYPE_CHECKING:
    from tutelage.client import OrchestratorClient
    from tutelage.domain.run import TaskWithQuiz


AT_ONCE = 16
"""Documents of one call: their questions are checked together."""


class Where(StrEnum):
    """For which documents questions are made."""

    MISSING = "missing"
    BESIDE = "beside"
    INSTEAD = "instead"


async def ask_about(
    client: OrchestratorClient,
    tasks: Sequence[TaskWithQuiz],
    most: int,
    least: int,
    seed: int,
    check: QuizCheck,
    where: Where = Where.MISSING,
) -> tuple[list[TaskWithQuiz], list[TaskWithQuiz], dict[str, MadeQuiz]]:
    """The tasks with questions made, as a rule where there were none; those for which fewer than `least` could be.

    And what was made, by task.
    """
    wanting = [
        item.task
        for item in tasks
        if isinstance(item.task.content, DocumentTask) and not (item.quiz.questions and where is Where.MISSING)
    ]
    made: dict[str, MadeQuiz] = {}
    for start in range(0, len(wanting), AT_ONCE):
        group = wanting[start : start + AT_ONCE]
        quizzes = await client.make_quizzes(group, most, seed=seed, check=check)
        made |= {task.id: quiz for task, quiz in zip(group, quizzes, strict=True)}
    asked: list[TaskWithQuiz] = []
    left_out: list[TaskWithQuiz] = []
    for item in tasks:
        found = made.get(item.task.id)
        if found is None:
            asked.append(item)
            continue
        given = item.quiz.questions if where is Where.BESIDE else ()
        more = new_questions(given, found.quiz.questions)
        whole = dataclasses.replace(item, quiz=Quiz((*given, *more)))
        (asked if len(more) >= least else left_out).append(whole)
    return asked, left_out, made


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


def document_line(item: TaskWithQuiz) -> str:
    """A document as a line of the files that are read."""
    content = item.task.content
    if not isinstance(content, DocumentTask):
        raise TypeError("only documents are written")
    questions: list[dict[str, Any]] = [
        {"id": each.id, "question": each.text, "answer": each.answer}
        | ({"topic": each.topic} if each.topic != content.title else {})
        | ({"aliases": list(each.aliases)} if each.aliases else {})
        | ({"support": each.support} if each.support else {})
        for each in item.quiz.questions
    ]
    line = {"id": item.task.id, "title": content.title, "text": content.text, "questions": questions}
    return json.dumps(line, ensure_ascii=False)


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
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
) -> None:
    """Make questions for documents. Look through them: a model wrote them. Their ids begin with `made-`."""
    from tutelage.documents import read_tasks
    from tutelage.domain.errors import InvalidInput

    tasks = read_tasks(documents, unasked=True)
    for item in tasks:
        if not isinstance(item.task.content, DocumentTask):
            raise InvalidInput.of(f"{documents}: {item.task.id}", "a few-shot task", "documents: tasks bring their own")

    async def call() -> tuple[list[TaskWithQuiz], dict[str, MadeQuiz]]:
        async with orchestrator_client(orchestrator) as client:
            asked, _, made = await ask_about(client, tasks, questions, 0, seed, check, where)
            return asked, made

    asked, made = asyncio.run(call())
    text = "".join(f"{document_line(item)}\n" for item in asked)
    if output is None:
        typer.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
    for task_id, found in made.items():
        why = f" ({found.told})" if found.told else ""
        typer.echo(f"{task_id}: {len(found.quiz.questions)} of {questions} questions made{why}", err=True)
