"""Checks of single values on their way in: all violations of a message are gathered, then raised at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import TypeVar, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from tutelage.domain.errors import FieldViolation, InvalidInput

T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)
EnumT = TypeVar("EnumT", bound=Enum)

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


class Checks:
    """Gathers the violations below one field's path; `passed` raises them all or returns the value."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._violations: list[FieldViolation] = []

    def path(self, name: str) -> str:
        """The dotted path of a part, such as `quiz.questions[2]`."""
        if not name or not self._field:
            return self._field or name
        return f"{self._field}{name}" if name.startswith("[") else f"{self._field}.{name}"

    def wrong(self, name: str, value: object, allowed: str) -> None:
        """Notes a violation."""
        self._violations.append(FieldViolation(self.path(name), str(value)[:200], allowed))

    def passed(self, value: T) -> T:
        """The value, or InvalidInput with everything that was noted."""
        if self._violations:
            raise InvalidInput(self._violations)
        return value

    def present(self, message: Message, name: str) -> None:
        """Notes a sub-message that is missing."""
        if not message.HasField(name):
            self.wrong(name, "nothing", "a value: the field is required")

    def nested(self, convert: Callable[[MessageT, str], T], message: MessageT, name: str) -> T:
        """A part converted with its path; what it raises is noted (the result is then never used)."""
        try:
            return convert(message, self.path(name))
        except InvalidInput as error:
            self._violations.extend(error.violations)
            return cast(T, None)

    def required(self, convert: Callable[[MessageT, str], T], parent: Message, name: str) -> T:
        """The sub-message of that name, which must be set, converted."""
        if not parent.HasField(name):
            self.present(parent, name)
            return cast(T, None)
        return self.nested(convert, cast(MessageT, getattr(parent, name)), name)

    def each(self, convert: Callable[[MessageT, str], T], messages: Iterable[MessageT], name: str) -> tuple[T, ...]:
        """Every element converted with its index in the path."""
        return tuple(self.nested(convert, message, f"{name}[{index}]") for index, message in enumerate(messages))

    def text(self, name: str, value: str) -> str:
        """A text that must hold more than blanks."""
        if not value.strip():
            self.wrong(name, value, "text that is not empty")
        return value

    def texts(self, name: str, values: Iterable[str]) -> tuple[str, ...]:
        """Texts of which none is empty."""
        return tuple(self.text(f"{name}[{index}]", value) for index, value in enumerate(values))

    def finite(self, name: str, value: float) -> float:
        """A number that is neither NaN nor infinite."""
        if not math.isfinite(value):
            self.wrong(name, value, "a finite number")
        return value

    def positive(self, name: str, value: float) -> float:
        """A finite number above 0."""
        if not (math.isfinite(value) and value > 0):
            self.wrong(name, value, "a finite number above 0")
        return value

    def at_least_zero(self, name: str, value: float) -> float:
        """A finite number that is not negative."""
        if not (math.isfinite(value) and value >= 0):
            self.wrong(name, value, "a finite number of 0 or more")
        return value

    def count(self, name: str, value: int, least: int = 0) -> int:
        """An integer of at least `least`."""
        if value < least:
            self.wrong(name, value, f"an integer of {least} or more")
        return value

    def scores(self, name: str, values: Mapping[str, float]) -> dict[str, float]:
        """Finite scores by grader."""
        return {grader: self.finite(f"{name}.{grader}", values[grader]) for grader in sorted(values)}

    def enum(self, name: str, value: int, members: Mapping[int, EnumT]) -> EnumT:
        """The domain's member of a wire enum; unspecified and unknown values are wrong."""
        if value not in members:
            self.wrong(
                name,
                value or "unspecified",
                "one of " + ", ".join(dict.fromkeys(str(m.value) for m in members.values())),
            )
            return cast(EnumT, None)
        return members[value]

    def time(self, parent: Message, name: str) -> datetime:
        """An aware UTC time that must be set."""
        if not parent.HasField(name):
            self.present(parent, name)
            return cast(datetime, None)
        value = self.optional_time(parent, name)
        return cast(datetime, value)

    def optional_time(self, parent: Message, name: str) -> datetime | None:
        """An aware UTC time, or None when unset."""
        if not parent.HasField(name):
            return None
        stamp: Timestamp = getattr(parent, name)
        try:
            return stamp.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.wrong(name, f"{stamp.seconds} s", "a time of the years 1 to 9999")
            return None


def timestamp(value: datetime) -> Timestamp:
    """A wire time; a naive datetime is taken as UTC."""
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def fitting(name: str, value: int, largest: int = INT32_MAX) -> int:
    """An integer that fits the wire's field; InvalidInput otherwise (protobuf would raise a bare ValueError)."""
    if not -largest - 1 <= value <= largest:
        raise InvalidInput.of(name, value, f"an integer of {-largest - 1} to {largest}")
    return value


def reverse(members: Mapping[int, EnumT]) -> dict[EnumT, int]:
    """The wire's value of each domain member."""
    return {member: value for value, member in members.items()}
