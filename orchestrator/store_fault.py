"""What a database says when it cannot be used now, or refuses a row, as faults that clients and runs understand."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from tutelage.domain.errors import TutelageError, Unavailable


class StoreFault(Unavailable):
    """The database is away, full, read-only or hangs: nothing was written, and what is stored stands."""

    @classmethod
    def of(cls, error: DBAPIError, url: str = "") -> StoreFault:
        """With the database's own first line, which names what is wrong; `url` is for its operator alone."""
        which = f" {url}" if url else ""
        return cls(f"the orchestrator's database{which} cannot be used now: {_first_line(error)}", retry_after_s=5.0)

    @classmethod
    def busy(cls) -> StoreFault:
        """All connections wait: for a lock, or for a server that hangs."""
        return cls("the orchestrator's database cannot be used now: all connections are in use", retry_after_s=5.0)


class StoreContradiction(TutelageError):
    """What was to be written contradicts what is stored: nothing was written, and trying again would not help."""

    @classmethod
    def of(cls, error: DBAPIError) -> StoreContradiction:
        """With the database's own first line, which names the constraint."""
        return cls(f"the orchestrator's database refuses a row: {_first_line(error)}")


def _first_line(error: DBAPIError) -> str:
    said = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
    return said[0]
