"""`tutelage inbox`: documents that students learn in scheduled windows: submit them, and see what became of them."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.connection import DEFAULT_ORCHESTRATOR, AsJson, Orchestrator, orchestrator_client
from tutelage.cli.listing import print_json, print_table

if TYPE_CHECKING:
    from tutelage.domain.inbox import Inbox, InboxDocument

app = typer.Typer(help="Documents that students learn in scheduled windows.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="INBOX", help="The inbox's name.")]


def _time(value: datetime | None) -> str:
    return f"{value:%Y-%m-%d %H:%M}" if value else ""


def outcome_text(document: InboxDocument) -> str:
    """What became of a document in each student, and what its inbox says of it, in one line."""
    parts = [
        f"{item.student}: committed {item.version[:12]}"
        if item.committed
        else f"{item.student}: {'not decided' if item.fault else 'left alone'}, {item.reason}"
        for item in document.outcomes
    ]
    return "; ".join([*parts, document.message] if document.message else parts)


@app.command()
def submit(
    inbox: Name,
    documents: Annotated[Path, typer.Argument(metavar="DOCUMENTS", help="File with documents and their questions.")],
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    as_json: AsJson = False,
) -> None:
    """Give documents to an inbox. Given again with the same content they stay as they are."""
    from tutelage.documents import read_tasks

    # The inbox knows whether it takes documents without questions.
    tasks = read_tasks(documents, unasked=True)

    async def call() -> tuple[int, int]:
        async with orchestrator_client(orchestrator) as client:
            return await client.submit_documents(inbox, tasks)

    accepted, known = asyncio.run(call())
    if as_json:
        print_json({"inbox": inbox, "accepted": accepted, "known": known})
    else:
        typer.echo(f"inbox {inbox}: {accepted} documents taken in, {known} were there before")


def _listed(orchestrator: str, inbox: str) -> tuple[list[Inbox], list[InboxDocument]]:
    from tutelage.domain.inbox import Inbox, InboxDocument

    async def call() -> list[Inbox | InboxDocument]:
        async with orchestrator_client(orchestrator) as client:
            return await client.list_inbox(inbox)

    items = asyncio.run(call())
    return [i for i in items if isinstance(i, Inbox)], [i for i in items if isinstance(i, InboxDocument)]


@app.command("list")
def list_inboxes(orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR, as_json: AsJson = False) -> None:
    """List the inboxes, what waits in them, and when they are worked off."""
    inboxes, _ = _listed(orchestrator, "")
    if as_json:
        print_json(inboxes)
        return
    rows = [
        (
            item.name,
            ", ".join(item.students),
            f"{item.waiting} / {item.working} / {item.done} / {item.failed}",
            f"{item.cron} {item.time_zone}",
            f"open until {_time(item.window_end)}" if item.window_end else _time(item.next_window),
            f"{item.spent} of {item.budget}" if item.window_start else f"{item.budget}",
            item.run_id,
        )
        for item in inboxes
    ]
    columns = ("inbox", "students", "waiting / working / done / failed", "opens", "window (UTC)", "evaluations", "run")
    print_table(columns, rows, "the orchestrator has no inboxes")


@app.command()
def show(inbox: Name, orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR, as_json: AsJson = False) -> None:
    """Show the documents of an inbox and what became of each."""
    inboxes, documents = _listed(orchestrator, inbox)
    if as_json:
        print_json({"inbox": inboxes[0], "documents": documents})
        return
    rows = [
        (
            item.title or item.id,
            item.source,
            _time(item.submitted_at),
            item.state.value,
            item.run_id,
            outcome_text(item),
        )
        for item in documents
    ]
    columns = ("document", "source", "came (UTC)", "state", "run", "outcome")
    print_table(columns, rows, "the inbox is empty")
