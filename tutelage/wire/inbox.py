"""Inboxes and their documents on the wire."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tutelage.domain.inbox import Inbox, InboxDocument, InboxDocumentState, InboxOutcome
from tutelage.domain.run import TaskWithQuiz
from tutelage.v1 import orchestrator_service_pb2 as pb
from tutelage.wire.checks import Checks, reverse, timestamp
from tutelage.wire.task import task_with_quiz_to_wire

_STATES: dict[int, InboxDocumentState] = {
    pb.INBOX_DOCUMENT_STATE_WAITING: InboxDocumentState.WAITING,
    pb.INBOX_DOCUMENT_STATE_WORKING: InboxDocumentState.WORKING,
    pb.INBOX_DOCUMENT_STATE_DONE: InboxDocumentState.DONE,
    pb.INBOX_DOCUMENT_STATE_FAILED: InboxDocumentState.FAILED,
}
_STATE_VALUES = reverse(_STATES)


def submission_to_wire(inbox: str, tasks: Iterable[TaskWithQuiz]) -> Iterator[pb.SubmitDocumentsRequest]:
    """The inbox's name, then a message a document."""
    yield pb.SubmitDocumentsRequest(inbox=inbox)
    for task in tasks:
        yield pb.SubmitDocumentsRequest(document=task_with_quiz_to_wire(task))


def inbox_to_wire(inbox: Inbox) -> pb.Inbox:
    """The inbox as a message."""
    return pb.Inbox(
        name=inbox.name,
        students=inbox.students,
        cron=inbox.cron,
        time_zone=inbox.time_zone,
        budget=inbox.budget,
        waiting=inbox.waiting,
        working=inbox.working,
        done=inbox.done,
        failed=inbox.failed,
        window_start=None if inbox.window_start is None else timestamp(inbox.window_start),
        window_end=None if inbox.window_end is None else timestamp(inbox.window_end),
        spent=inbox.spent,
        next_window=timestamp(inbox.next_window),
        run_id=inbox.run_id,
    )


def inbox_from_wire(message: pb.Inbox, field: str = "inbox") -> Inbox:
    """An inbox with a name and the time of its next window."""
    checks = Checks(field)
    return checks.passed(
        Inbox(
            name=checks.text("name", message.name),
            students=checks.texts("students", message.students),
            cron=checks.text("cron", message.cron),
            time_zone=checks.text("time_zone", message.time_zone),
            budget=checks.count("budget", message.budget),
            waiting=checks.count("waiting", message.waiting),
            working=checks.count("working", message.working),
            done=checks.count("done", message.done),
            failed=checks.count("failed", message.failed),
            window_start=checks.optional_time(message, "window_start"),
            window_end=checks.optional_time(message, "window_end"),
            spent=checks.count("spent", message.spent),
            next_window=checks.time(message, "next_window"),
            run_id=message.run_id,
        )
    )


def inbox_document_to_wire(document: InboxDocument) -> pb.InboxDocument:
    """The document's entry as a message."""
    message = pb.InboxDocument(
        id=document.id,
        title=document.title,
        source=document.source,
        submitted_at=timestamp(document.submitted_at),
        run_id=document.run_id,
        attempts=document.attempts,
        message=document.message,
        outcomes=[
            pb.InboxOutcome(
                student=item.student,
                committed=item.committed,
                reason=item.reason,
                version=item.version,
                fault=item.fault,
            )
            for item in document.outcomes
        ],
    )
    message.state = _STATE_VALUES[document.state]  # type: ignore[assignment]
    return message


def inbox_document_from_wire(message: pb.InboxDocument, field: str = "document") -> InboxDocument:
    """An entry with an id, a state and the time it came."""
    checks = Checks(field)
    return checks.passed(
        InboxDocument(
            id=checks.text("id", message.id),
            title=message.title,
            source=message.source,
            submitted_at=checks.time(message, "submitted_at"),
            state=checks.enum("state", message.state, _STATES),
            run_id=message.run_id,
            attempts=checks.count("attempts", message.attempts),
            message=message.message,
            outcomes=checks.each(_outcome, message.outcomes, "outcomes"),
        )
    )


def _outcome(message: pb.InboxOutcome, field: str) -> InboxOutcome:
    checks = Checks(field)
    student = checks.text("student", message.student)
    return checks.passed(InboxOutcome(student, message.committed, message.reason, message.version, message.fault))


def listed_from_wire(message: pb.ListInboxResponse) -> Inbox | InboxDocument:
    """An inbox, or a document of the one that was asked about."""
    if message.HasField("inbox"):
        return inbox_from_wire(message.inbox)
    return inbox_document_from_wire(message.document)
