"""Self-edits and what is wrong with them, on the wire."""

from __future__ import annotations

from tutelage.domain.self_edit import (
    ChatDocument,
    ChatMessage,
    Directives,
    LossMask,
    Rejection,
    RejectionReason,
    Role,
    Schedule,
    SelfEdit,
    TextDocument,
    TrainingDocument,
)
from tutelage.v1 import self_edit_pb2 as pb
from tutelage.wire.checks import Checks, fitting, reverse

LOSS_MASKS: dict[int, LossMask] = {pb.LOSS_MASK_ALL: LossMask.ALL, pb.LOSS_MASK_COMPLETION: LossMask.COMPLETION}
LOSS_MASK_VALUES = reverse(LOSS_MASKS)
SCHEDULES: dict[int, Schedule] = {
    pb.SCHEDULE_CONSTANT: Schedule.CONSTANT,
    pb.SCHEDULE_LINEAR: Schedule.LINEAR,
    pb.SCHEDULE_COSINE: Schedule.COSINE,
}
SCHEDULE_VALUES = reverse(SCHEDULES)
_ROLES: dict[int, Role] = {
    pb.ROLE_SYSTEM: Role.SYSTEM,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
}
_ROLE_VALUES = reverse(_ROLES)
_REASONS: dict[int, RejectionReason] = {
    pb.REJECTION_REASON_UNPARSABLE: RejectionReason.UNPARSABLE,
    pb.REJECTION_REASON_OUT_OF_BOUNDS: RejectionReason.OUT_OF_BOUNDS,
    pb.REJECTION_REASON_TOO_LARGE: RejectionReason.TOO_LARGE,
    pb.REJECTION_REASON_DIVERGED: RejectionReason.DIVERGED,
    pb.REJECTION_REASON_EMPTY: RejectionReason.EMPTY,
}
_REASON_VALUES = reverse(_REASONS)


def _document_to_wire(document: TrainingDocument) -> pb.TrainingDocument:
    if isinstance(document, TextDocument):
        return pb.TrainingDocument(text=pb.TextDocument(text=document.text))
    messages = []
    for item in document.messages:
        message = pb.ChatMessage(content=item.content, train=item.train)
        message.role = _ROLE_VALUES[item.role]  # type: ignore[assignment]
        messages.append(message)
    return pb.TrainingDocument(chat=pb.ChatDocument(messages=messages))


def _chat_message_from_wire(message: pb.ChatMessage, field: str) -> ChatMessage:
    checks = Checks(field)
    role = checks.enum("role", message.role, _ROLES)
    return checks.passed(ChatMessage(role, message.content, message.train))


def _document_from_wire(message: pb.TrainingDocument, field: str) -> TrainingDocument:
    checks = Checks(field)
    kind = message.WhichOneof("content")
    if kind == "text":
        return checks.passed(TextDocument(checks.text("text.text", message.text.text)))
    messages = checks.each(_chat_message_from_wire, message.chat.messages, "chat.messages")
    if kind is None:
        checks.wrong("content", "nothing", "text or chat")
    elif not any(item.content.strip() for item in message.chat.messages):
        checks.wrong("chat.messages", "nothing", "at least one message that is not empty")
    return checks.passed(ChatDocument(messages))


def directives_to_wire(directives: Directives) -> pb.Directives:
    """The directives as a message; InvalidInput when a number does not fit the wire."""
    message = pb.Directives()
    if directives.learning_rate is not None:
        message.learning_rate = directives.learning_rate
    if directives.epochs is not None:
        message.epochs = fitting("directives.epochs", directives.epochs)
    if directives.rank is not None:
        message.rank = fitting("directives.rank", directives.rank)
    if directives.loss_mask is not None:
        message.loss_mask = LOSS_MASK_VALUES[directives.loss_mask]  # type: ignore[assignment]
    return message


def directives_from_wire(message: pb.Directives, field: str = "directives") -> Directives:
    """Finite directives of any size: bounds are the student's to hold, and to reject by."""
    checks = Checks(field)
    mask = message.loss_mask
    return checks.passed(
        Directives(
            learning_rate=checks.finite("learning_rate", message.learning_rate)
            if message.HasField("learning_rate")
            else None,
            epochs=message.epochs if message.HasField("epochs") else None,
            rank=message.rank if message.HasField("rank") else None,
            loss_mask=checks.enum("loss_mask", mask, LOSS_MASKS) if mask != pb.LOSS_MASK_UNSPECIFIED else None,
        )
    )


def self_edit_to_wire(edit: SelfEdit) -> pb.SelfEdit:
    """The self-edit as a message."""
    documents = [_document_to_wire(document) for document in edit.documents]
    return pb.SelfEdit(documents=documents, directives=directives_to_wire(edit.directives))


def self_edit_from_wire(message: pb.SelfEdit, field: str = "self_edit") -> SelfEdit:
    """A self-edit whose documents hold text; one without documents passes, for the student to reject as empty."""
    checks = Checks(field)
    return checks.passed(
        SelfEdit(
            checks.each(_document_from_wire, message.documents, "documents"),
            checks.nested(directives_from_wire, message.directives, "directives"),
        )
    )


def rejection_to_wire(rejection: Rejection) -> pb.Rejection:
    """The rejection as a message."""
    message = pb.Rejection(
        field=rejection.field, value=rejection.value, allowed=rejection.allowed, message=rejection.message
    )
    message.reason = _REASON_VALUES[rejection.reason]  # type: ignore[assignment]
    return message


def rejection_from_wire(message: pb.Rejection, field: str = "rejection") -> Rejection:
    """A rejection with a known reason."""
    checks = Checks(field)
    reason = checks.enum("reason", message.reason, _REASONS)
    return checks.passed(Rejection(reason, message.field, message.value, message.allowed, message.message))
