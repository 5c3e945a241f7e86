"""One exception a kind of fault; `tutelage.rpc` maps each to a status code with details in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldViolation:
    """A field that is wrong: its path, what was given, and what is allowed."""

    field: str
    value: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.field}: {self.value[:200]!r} is not allowed; allowed: {self.allowed}"


class TutelageError(Exception):
    """Base of all faults this project names; the text is safe to show to a client."""


class InvalidInput(TutelageError):
    """Bad input, with every violation found (INVALID_ARGUMENT)."""

    def __init__(self, violations: Sequence[FieldViolation] | FieldViolation) -> None:
        self.violations = (violations,) if isinstance(violations, FieldViolation) else tuple(violations)
        super().__init__("; ".join(str(violation) for violation in self.violations))

    @classmethod
    def of(cls, field: str, value: object, allowed: str) -> InvalidInput:
        return cls(FieldViolation(field, str(value), allowed))


class NotFound(TutelageError):
    """A named thing is not there (NOT_FOUND)."""

    def __init__(self, kind: str, name: str, hint: str = "") -> None:
        self.kind, self.name = kind, name
        super().__init__(f"{kind} {name!r} is not known" + (f"; {hint}" if hint else ""))


class PreconditionFailed(TutelageError):
    """The call does not fit the state of the service (FAILED_PRECONDITION)."""


class Conflict(TutelageError):
    """A compare-and-set lost, or an id is taken by other content (ABORTED)."""


class AlreadyExists(TutelageError):
    """An id is taken by other content (ALREADY_EXISTS)."""


class Exhausted(TutelageError):
    """No room now: memory, slots or queue (RESOURCE_EXHAUSTED); may be asked again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Unavailable(TutelageError):
    """The service cannot answer now; asking again is safe (UNAVAILABLE)."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class DataLoss(TutelageError):
    """Something stored is damaged, such as a truncated adapter (DATA_LOSS)."""
