"""Domain errors to status codes with google.rpc details, and back to the same exceptions."""

from __future__ import annotations

import json
import re

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from tutelage.domain.errors import (
    AlreadyExists,
    Conflict,
    DataLoss,
    Exhausted,
    FieldViolation,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    TutelageError,
    Unavailable,
)

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata that carries the serialised google.rpc.Status."""

# Peers refuse trailers above 8 KiB by default; the rest of them is HTTP's own.
_MAX_DETAIL_BYTES = 4096
_MAX_TEXT = 1000

_OVER_THE_LIMIT = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
"""How gRPC itself refuses a message, with RESOURCE_EXHAUSTED and no details."""

_CODES: tuple[tuple[type[TutelageError], grpc.StatusCode], ...] = (
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (PreconditionFailed, grpc.StatusCode.FAILED_PRECONDITION),
    (Conflict, grpc.StatusCode.ABORTED),
    (AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (Exhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (DataLoss, grpc.StatusCode.DATA_LOSS),
)


def status_code(error: TutelageError) -> grpc.StatusCode:
    """The code of a domain error; INTERNAL for one without a code of its own."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def _sendable(text: str) -> str:
    """Without halves of characters, such as YAML may spell: no message could hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _bad_request(error: InvalidInput) -> error_details_pb2.BadRequest:
    detail = error_details_pb2.BadRequest()
    for violation in error.violations:
        text = json.dumps({"value": violation.value[:200], "allowed": violation.allowed[:500]}, ensure_ascii=False)
        detail.field_violations.add(field=_sendable(violation.field[:200]), description=_sendable(text))
        if detail.ByteSize() > _MAX_DETAIL_BYTES:
            del detail.field_violations[-1]
            break
    return detail


def _detail(error: TutelageError) -> Message | None:
    detail: Message
    if isinstance(error, InvalidInput):
        detail = _bad_request(error)
        return detail
    if isinstance(error, NotFound):
        detail = error_details_pb2.ResourceInfo(
            resource_type=error.kind[:200], resource_name=_sendable(error.name[:200])
        )
        return detail
    if isinstance(error, Exhausted | Unavailable) and error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        detail = error_details_pb2.RetryInfo(retry_delay=delay)
        return detail
    return None


def to_status(error: TutelageError) -> status_pb2.Status:
    """The status of a domain error; texts and violations are cut so that it fits a trailer."""
    status = status_pb2.Status(code=status_code(error).value[0], message=_sendable(str(error)[:_MAX_TEXT]))
    detail = _detail(error)
    if detail is not None:
        status.details.add().Pack(detail)
    return status


def _status_of(error: grpc.RpcError) -> status_pb2.Status:
    trailing = getattr(error, "trailing_metadata", lambda: None)() or ()
    for key, value in trailing:
        if key == DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _violation(item: error_details_pb2.BadRequest.FieldViolation) -> FieldViolation:
    try:
        content = json.loads(item.description)
        return FieldViolation(item.field, str(content["value"]), str(content["allowed"]))
    except (ValueError, KeyError, TypeError):
        return FieldViolation(item.field, "", item.description)


def _invalid_input(status: status_pb2.Status, text: str) -> TutelageError:
    detail = error_details_pb2.BadRequest()
    if any(item.Unpack(detail) for item in status.details):
        return InvalidInput([_violation(item) for item in detail.field_violations])
    return InvalidInput.of("request", "refused", text)


def _not_found(status: status_pb2.Status, text: str) -> TutelageError:
    detail = error_details_pb2.ResourceInfo()
    if not any(item.Unpack(detail) for item in status.details):
        detail.resource_type = "resource"
    error = NotFound(detail.resource_type, detail.resource_name)
    # The server's text, which may carry a hint.
    error.args = (text,)
    return error


def _retry_after_s(status: status_pb2.Status) -> float | None:
    detail = error_details_pb2.RetryInfo()
    if any(item.Unpack(detail) for item in status.details):
        return float(detail.retry_delay.ToMilliseconds() / 1000)
    return None


def _why_unavailable(text: str) -> str:
    # gRPC tells the address twice, and the cause at the end.
    if text.startswith("failed to connect to all addresses"):
        return f"is not reachable ({text.rpartition(': ')[2]})"
    return text or "is not reachable"


def from_rpc_error(error: grpc.RpcError, peer: str = "") -> TutelageError:
    """The domain error that a failed call stands for.

    `peer` (host:port) is named where it did not answer, and where what refused the call was not its service.
    """
    code: grpc.StatusCode = error.code()
    text: str = error.details() or ""
    status = _status_of(error)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return _invalid_input(status, text)
    if code == grpc.StatusCode.NOT_FOUND:
        return _not_found(status, text)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        over = None if status.code else _OVER_THE_LIMIT.search(text)
        if over is not None:
            # Unlike a full queue this does not pass by waiting.
            return InvalidInput.of(
                "message", f"{over[1]} bytes", f"at most {over[2]} bytes (max_message_mib of either end)"
            )
        return Exhausted(text, _retry_after_s(status))
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        late = code == grpc.StatusCode.DEADLINE_EXCEEDED
        reason = "did not answer in time" if late else _why_unavailable(text)
        return Unavailable(f"{peer}: {reason}" if peer and not status.code else reason, _retry_after_s(status))
    for kind, own in _CODES:
        if own == code:
            return kind(text)
    if code == grpc.StatusCode.UNIMPLEMENTED and not status.code:
        # gRPC's own words, "Method not found!", name neither who was asked nor what is wrong.
        return TutelageError(f"{peer or 'the service'} has no such call: another kind of service, or another version")
    reason = f"{code.name}: {text}"
    return TutelageError(f"{peer}: {reason}" if peer and not status.code else reason)
