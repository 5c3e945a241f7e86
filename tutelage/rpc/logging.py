"""Log lines on standard error, plain or JSON, each with the ids that are bound to the work at hand."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import Literal

_EMPTY: MappingProxyType[str, object] = MappingProxyType({})
_bound: ContextVar[MappingProxyType[str, object]] = ContextVar("tutelage_log_fields", default=_EMPTY)

LONGEST = 200
"""Characters of a bound field; some of them, such as a run's id, are whatever a caller sent."""


class Binding:
    """What `bind` returns; as a context manager it takes the fields off again."""

    def __init__(self, before: MappingProxyType[str, object]) -> None:
        self._before = before

    def __enter__(self) -> Binding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Not reset by token: an async generator may be closed in another context than it began in.
        _bound.set(self._before)


def bind(**fields: object) -> Binding:
    """Adds fields such as run_id to every later log line of this task; empty ones are left out."""
    before = _bound.get()
    given = {name: value for name, value in fields.items() if value not in ("", None)}
    short = {name: value[:LONGEST] if isinstance(value, str) else value for name, value in given.items()}
    _bound.set(MappingProxyType({**before, **short}))
    return Binding(before)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class PlainFormatter(logging.Formatter):
    """`time level logger: message [field=value ...]`; further lines of it are indented, and so pass for none."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _bound.get().items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}"
        line = "\n    ".join((f"{line} [{fields}]" if fields else line).splitlines())
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the bound fields, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            **_bound.get(),
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(format: Literal["plain", "json"] = "plain", level: str = "INFO") -> None:
    """Sends all logging to standard error in one format, at one level."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
