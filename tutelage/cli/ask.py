"""`tutelage ask`: the orchestrator says which version is current, the student answers with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.connection import DEFAULT_ORCHESTRATOR, AsJson, Orchestrator, orchestrator_client, student_client
from tutelage.cli.listing import print_json
from tutelage.domain.errors import Exhausted, NotFound, Unavailable

if TYPE_CHECKING:
    from tutelage.domain.run import LogicalStudent


async def answer_of(student: LogicalStudent, question: str, topic: str, version: str) -> str:
    """A student's answer to one question with the version named, by the first of its replicas that can give it.

    NotFound when every replica says that it does not keep the version; Unavailable or Exhausted when one that may keep
    it could not be asked.
    """
    from tutelage.domain.run import StudentReplica
    from tutelage.domain.task import Question

    # A gold answer is part of a question in the contract; what is asked here is not graded.
    asked = Question(id="asked", text=question, answer="", topic=topic)
    missing: NotFound | None = None
    fault: Unavailable | Exhausted | None = None
    for replica in student.replicas or (StudentReplica(student.address),):
        try:
            async with student_client(replica.address, replica.server_name) as client:
                answers = await client.answer([asked], adapter_version=version)
            return answers[0].text
        except NotFound as error:
            # Each replica keeps the versions that it made.
            missing = error
        except (Unavailable, Exhausted) as error:
            fault = fault or error
    raise fault or missing or NotFound("student", student.name, "it has no replica")


def ask(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The student's name.")],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask.")],
    topic: Annotated[str, typer.Option(help="What the question is about, as in the quizzes.")] = "",
    version: Annotated[str | None, typer.Option(help="A version, or `base`; else the current one.")] = None,
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    as_json: AsJson = False,
) -> None:
    """Ask a student a question."""
    from tutelage.cli.adapters import find_student, full_version

    async def call() -> tuple[str, str]:
        async with orchestrator_client(orchestrator) as client:
            known = await find_student(client, student)
        chosen = known.current_adapter_version if version is None else full_version(known, version)
        return await answer_of(known, question, topic, chosen), chosen

    text, chosen = asyncio.run(call())
    if as_json:
        print_json({"student": student, "version": chosen, "question": question, "answer": text})
    else:
        typer.echo(text)
