"""A self-edit: training documents and directives on how to train on them (SEAL, arXiv 2506.10943, section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tutelage.domain.canonical import as_floats


class LossMask(StrEnum):
    ALL = "all"
    COMPLETION = "completion"


class Schedule(StrEnum):
    CONSTANT = "constant"
    LINEAR = "linear"
    COSINE = "cosine"


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class ChatMessage:
    role: Role
    content: str
    train: bool = False
    """Whether its tokens carry loss under `LossMask.COMPLETION`."""


@dataclass(frozen=True)
class ChatDocument:
    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True)
class TextDocument:
    text: str


TrainingDocument = TextDocument | ChatDocument


def characters(document: TrainingDocument) -> int:
    """Of all that it says."""
    if isinstance(document, TextDocument):
        return len(document.text)
    return sum(len(message.content) for message in document.messages)


@dataclass(frozen=True)
class Directives:
    """How the writer wants to be trained on; None leaves the run's setting. Untrusted: students hold it to bounds."""

    learning_rate: float | None = None
    epochs: int | None = None
    rank: int | None = None
    loss_mask: LossMask | None = None

    def __post_init__(self) -> None:
        as_floats(self, "learning_rate")


@dataclass(frozen=True)
class SelfEdit:
    documents: tuple[TrainingDocument, ...]
    directives: Directives = field(default_factory=Directives)


class RejectionReason(StrEnum):
    UNPARSABLE = "unparsable"
    OUT_OF_BOUNDS = "out_of_bounds"
    TOO_LARGE = "too_large"
    DIVERGED = "diverged"
    EMPTY = "empty"


@dataclass(frozen=True)
class Rejection:
    """A fault of the edit itself, never of a machine."""

    reason: RejectionReason
    field: str = ""
    value: str = ""
    allowed: str = ""
    message: str = ""


def question_answer(question: str, answer: str) -> ChatDocument:
    """A question and its answer as a chat document whose answer carries the loss."""
    return ChatDocument((ChatMessage(Role.USER, question), ChatMessage(Role.ASSISTANT, answer, train=True)))
