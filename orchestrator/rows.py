"""What all parts of the store stand on: a transaction each, and events numbered in the order they are written."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, Self, TypeVar

from sqlalchemy import func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from orchestrator import metrics
from orchestrator import schema as s
from orchestrator.database import now_us, reading, to_datetime
from orchestrator.leasing import EndedElsewhere, LeaseLost
from orchestrator.store_fault import StoreContradiction, StoreFault
from tutelage.domain.run import RunEvent, RunState

P = ParamSpec("P")
T = TypeVar("T")

Event = tuple[str, Mapping[str, object]]
"""Kind and detail."""


def insert_or_ignore(
    connection: AsyncConnection, table: Any, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None
) -> Any:
    """An insert that leaves existing rows as they are; without rows they are given when it is executed."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table)
    return (statement if rows is None else statement.values(rows)).on_conflict_do_nothing()


async def inserted(connection: AsyncConnection, table: Any, row: Mapping[str, Any]) -> bool:
    """Inserts a row unless one with its key is there; whether it was inserted."""
    # Asked by RETURNING: PostgreSQL's driver does not count rows of an insert.
    first = next(iter(table.primary_key.columns))
    made = await connection.execute(insert_or_ignore(connection, table, row).returning(first))
    return made.first() is not None


def uninterrupted(method: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Lets a transaction end before a cancellation goes on.

    A statement that is cancelled still runs in the driver's thread, and would leave the database locked. A database
    that cannot be used is raised as StoreFault, what it will never take as StoreContradiction.
    """

    @functools.wraps(method)
    async def whole(*args: P.args, **kwargs: P.kwargs) -> T:
        task = asyncio.ensure_future(method(*args, **kwargs))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait({task})
            # Whoever asked is gone: a fault of the transaction is nobody's news any more.
            _ = task.cancelled() or task.exception()
            raise
        except DBAPIError as error:
            if isinstance(error, IntegrityError | DataError):
                raise StoreContradiction.of(error) from error
            metrics.STORE_FAULTS.inc()
            raise StoreFault.of(error) from error
        except NoConnection as error:
            metrics.STORE_FAULTS.inc()
            raise StoreFault.busy() from error

    return whole


@dataclass(frozen=True)
class Fence:
    """Lets only the orchestrator that holds a run write to it."""

    run_id: str
    epoch: int


class Rows:
    """Base of the parts; every method is one transaction."""

    def __init__(self, engine: AsyncEngine, fence: Fence | None = None) -> None:
        self.engine = engine
        self.reading = reading(engine)
        self.fence = fence

    def fenced(self, run_id: str, epoch: int) -> Self:
        """The same store, whose writes to the run raise LeaseLost once another epoch has begun or the run has ended."""
        return type(self)(self.engine, Fence(run_id, epoch))

    async def _locked(self, connection: AsyncConnection, run_id: str, *, also_ended: bool = False) -> None:
        """Locks the run's row until the transaction ends; LeaseLost when this store no longer holds the run.

        A run that was ended by somebody else is nobody's to write to, but for what may be told of it `also_ended`.
        """
        # Two writers of one run take their sequence numbers in turn; SQLite has one writer anyway.
        row = await connection.execute(
            select(s.runs.c.epoch, s.runs.c.state).where(s.runs.c.run_id == run_id).with_for_update(key_share=True)
        )
        epoch, state = row.first() or (None, "")
        if self.fence is None:
            return
        if (run_id, epoch) != (self.fence.run_id, self.fence.epoch):
            raise LeaseLost(f"run {run_id!r} is driven by another orchestrator now")
        if RunState(state).ended and not also_ended:
            raise EndedElsewhere(f"run {run_id!r} is {state}")

    async def _append(self, connection: AsyncConnection, run_id: str, events: Iterable[Event]) -> None:
        await self._locked(connection, run_id)
        await self._append_locked(connection, run_id, events)

    async def _append_locked(self, connection: AsyncConnection, run_id: str, events: Iterable[Event]) -> None:
        latest = await connection.scalar(select(func.max(s.events.c.sequence)).where(s.events.c.run_id == run_id))
        rows = [
            {
                "run_id": run_id,
                "sequence": (latest or 0) + offset,
                "at": now_us(),
                "kind": kind,
                "detail": json.dumps(detail, allow_nan=False),
            }
            for offset, (kind, detail) in enumerate(events, start=1)
        ]
        if rows:
            await connection.execute(insert(s.events), rows)

    @uninterrupted
    async def append(self, run_id: str, *events: Event) -> None:
        """Adds events with the next sequence numbers."""
        async with self.engine.begin() as connection:
            await self._append(connection, run_id, events)

    @uninterrupted
    async def events(self, run_id: str, after: int = 0, limit: int | None = None) -> list[RunEvent]:
        """Events after a sequence number, in order."""
        c = s.events.c
        query = select(s.events).where(c.run_id == run_id, c.sequence > after).order_by(c.sequence)
        if limit is not None:
            query = query.limit(limit)
        async with self.reading.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            RunEvent(row["sequence"], to_datetime(row["at"]), row["kind"], json.loads(row["detail"])) for row in rows
        ]
