"""`tutelage adapters`: which version of each student is current, and back to an earlier one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.connection import DEFAULT_ORCHESTRATOR, AsJson, Orchestrator, orchestrator_client
from tutelage.cli.listing import print_json, print_table
from tutelage.domain.errors import InvalidInput, NotFound, PreconditionFailed

if TYPE_CHECKING:
    from tutelage.client import OrchestratorClient
    from tutelage.domain.run import LogicalStudent

app = typer.Typer(help="Versions that the students have learned.", no_args_is_help=True)

BASE = "base"
"""How the command line writes the untouched base model."""


def version_text(version: str) -> str:
    """A version as it is shown: its first digits, or `base`."""
    return version[:12] or BASE


async def find_student(client: OrchestratorClient, name: str) -> LogicalStudent:
    """The logical student of that name; NotFound names those there are."""
    students = await client.list_students()
    for student in students:
        if student.name == name:
            return student
    raise NotFound("student", name, "known: " + (", ".join(student.name for student in students) or "none"))


def full_version(student: LogicalStudent, version: str) -> str:
    """The version that a unique beginning names; InvalidInput lists the versions there are."""
    if version == BASE:
        return ""
    before, left = student.previous_adapter_versions, student.left_adapter_versions
    known = [item for item in (student.current_adapter_version, *before, *left) if item]
    matches = sorted({item for item in known if item.startswith(version)})
    if len(matches) == 1:
        return matches[0]
    raise InvalidInput.of("version", version, "one of " + ", ".join([*map(version_text, known), BASE]))


@app.command("list")
def list_adapters(orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR, as_json: AsJson = False) -> None:
    """List the students, the version that is current for each, and those before it."""

    async def call() -> tuple[LogicalStudent, ...]:
        async with orchestrator_client(orchestrator) as client:
            return tuple(await client.list_students())

    students = asyncio.run(call())
    if as_json:
        print_json(students)
        return
    rows = [
        (
            student.name,
            student.base_model,
            version_text(student.current_adapter_version),
            ", ".join(version_text(version) for version in student.previous_adapter_versions),
            f"{student.changed_at:%Y-%m-%d %H:%M}" if student.changed_at else "",
            student.address if student.reachable else f"{student.address} (unreachable)",
        )
        for student in students
    ]
    columns = ("student", "base model", "current", "before (newest first)", "changed (UTC)", "address")
    print_table(columns, rows, "the orchestrator has no students")


@app.command()
def rollback(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The student's name.")],
    version: Annotated[
        str | None,
        typer.Argument(metavar="[VERSION]", help="A version or its beginning, or `base`; else the one before."),
    ] = None,
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    as_json: AsJson = False,
) -> None:
    """Make an earlier version of a student current again."""

    async def call() -> LogicalStudent:
        async with orchestrator_client(orchestrator) as client:
            known = await find_student(client, student)
            if version is not None:
                target = full_version(known, version)
            elif known.previous_adapter_versions:
                target = known.previous_adapter_versions[0]
            elif known.current_adapter_version:
                target = ""
            else:
                raise PreconditionFailed(f"student {student!r} is the untouched base model: nothing to go back to")
            return await client.set_current_adapter(student, known.current_adapter_version, target)

    changed = asyncio.run(call())
    if as_json:
        print_json(changed)
    else:
        typer.echo(f"{changed.name}: current is now {version_text(changed.current_adapter_version)}")
