"""An inbox as its clients see it: documents that wait to be learned, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class InboxDocumentState(StrEnum):
    WAITING = "waiting"
    WORKING = "working"
    DONE = "done"
    FAILED = "failed"
    """Given up after repeated faults; no student was changed by it."""


@dataclass(frozen=True)
class InboxOutcome:
    """What became of a document in one student."""

    student: str
    committed: bool
    reason: str
    """Why the student was left alone; empty when it was committed."""
    version: str
    fault: bool = False
    """Whether a fault, and no gate, kept the student from learning it."""


@dataclass(frozen=True)
class InboxDocument:
    id: str
    title: str
    source: str
    """`submitted`, or the name of the file it was dropped in."""
    submitted_at: datetime
    state: InboxDocumentState
    run_id: str
    """The run that works or worked on it; empty while none did."""
    attempts: int
    """Runs that faults kept from deciding it."""
    message: str
    outcomes: tuple[InboxOutcome, ...] = ()


@dataclass(frozen=True)
class Inbox:
    name: str
    students: tuple[str, ...]
    cron: str
    time_zone: str
    budget: int
    """Evaluations a window."""
    waiting: int
    working: int
    done: int
    failed: int
    window_start: datetime | None
    """Of the window that is open now."""
    window_end: datetime | None
    spent: int
    """Evaluations used or reserved in that window."""
    next_window: datetime
    run_id: str
    """The run that is under way for it; empty when none is."""
