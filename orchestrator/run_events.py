"""What a run decides, and the facts it learns: the two alphabets of the state machine."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.plan import Group
from tutelage.domain.run import RunState


# Decisions: what is to be done.
@dataclass(frozen=True, slots=True)
class WriteGroup:
    group: Group
    policy_version: str


@dataclass(frozen=True, slots=True)
class Evaluate:
    """One evaluation of one edit; candidates of a group with equal edits share it."""

    round: int
    task: str
    edit: str
    """Content hash of the self-edit."""
    student: str
    repeat: int


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    round: int
    parent_version: str


@dataclass(frozen=True, slots=True)
class Commit:
    """Gate the best edit of a task and make it permanent in a student, or record why not."""

    student: str
    task: str


@dataclass(frozen=True, slots=True)
class FinishRun:
    pass


Decision = WriteGroup | Evaluate | UpdatePolicy | Commit | FinishRun


# Facts: what has happened and is stored.
@dataclass(frozen=True, slots=True)
class GroupWritten:
    """All candidates of a group: by index the content hash of the edit, or None for a rejected one."""

    group: Group
    edits: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """An evaluation ended; no reward means that it counts as unscored."""

    work: Evaluate
    reward: float | None
    rejected: bool = False
    """Whether the student refused the edit: its reward was agreed, not measured."""


@dataclass(frozen=True, slots=True)
class PolicyUpdated:
    round: int
    version: str


@dataclass(frozen=True, slots=True)
class CommitDecided:
    student: str
    task: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    state: RunState


Fact = GroupWritten | Evaluated | PolicyUpdated | CommitDecided | RunEnded
