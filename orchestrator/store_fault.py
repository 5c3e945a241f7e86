"""What a database says when it cannot be used now, as a fault that clients and runs understand."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from tutelage.domain.errors import Unavailable


class StoreFault(Unavailable):
    """The database is away, full or read-only: nothing was written, and what is stored stands."""

    @classmethod
    def of(cls, error: DBAPIError) -> StoreFault:
        """With the database's own first line, which names what is wrong."""
        said = str(error.orig).strip().splitlines() or [type(error.orig).__name__]
        return cls(f"the orchestrator's database cannot be used now: {said[0]}", retry_after_s=5.0)
