"""Leases of runs: taken when free or run out, renewed while held, given back at the end.

Time is the database's own on PostgreSQL, so that orchestrators need not agree on a clock; on SQLite all are on one
machine.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import BigInteger, ColumnElement, and_, cast, func, literal, or_, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator import schema as s
from orchestrator.database import end_silent, now_us
from orchestrator.leasing import Held, Lease
from orchestrator.rows import Rows, uninterrupted
from tutelage.domain.errors import NotFound
from tutelage.domain.run import RunState

_LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's code for a lock that was not got within `lock_timeout`."""


class LeaseRows(Rows):
    """Reads and writes of the columns that say who drives a run."""

    @uninterrupted
    async def free_runs(self, is_dead: Callable[[str], bool] = lambda _: False) -> list[tuple[str, str]]:
        """(run, last owner) of running runs that nobody holds or whose owner is dead, oldest first."""
        c = s.runs.c
        async with self.reading.connect() as connection:
            free = (c.leased_until < _now(connection)).label("free")
            query = select(c.run_id, c.owner, free).where(c.state == RunState.RUNNING.value)
            rows = (await connection.execute(query.order_by(c.created_at, c.run_id))).all()
        return [(row.run_id, row.owner) for row in rows if row.free or is_dead(row.owner)]

    @uninterrupted
    async def take(self, run_id: str, owner: str, seconds: float, *, dead: str = "") -> Lease | None:
        """The run's lease; None when somebody holds it (other than the `dead` owner), or it is not running.

        Who fell silent while it wrote to the run is cut off once a write waited for it.
        """
        try:
            epoch = await self._taken(run_id, owner, seconds, dead)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE or not await end_silent(self.engine):
                raise
            epoch = await self._taken(run_id, owner, seconds, dead)
        return None if epoch is None else Lease(run_id, epoch)

    async def _taken(self, run_id: str, owner: str, seconds: float, dead: str) -> int | None:
        c = s.runs.c
        async with self.engine.begin() as connection:
            now = _now(connection)
            taken = await connection.execute(
                update(s.runs)
                .where(c.run_id == run_id, c.state == RunState.RUNNING.value)
                .where(or_(c.leased_until < now, and_(c.owner == dead, c.owner != "")))
                .values(owner=owner, epoch=c.epoch + 1, leased_until=now + int(seconds * 1e6))
                .returning(c.epoch)
            )
            epoch: int | None = taken.scalar()
        return epoch

    @uninterrupted
    async def renew(self, lease: Lease, seconds: float) -> Held:
        """Prolongs a lease that is still held; also tells the run's state, which others may have changed."""
        c = s.runs.c
        async with self.engine.begin() as connection:
            renewed = await connection.execute(
                update(s.runs)
                .where(c.run_id == lease.run_id, c.epoch == lease.epoch)
                .values(leased_until=_now(connection) + int(seconds * 1e6))
                .returning(c.state)
            )
            state = renewed.scalar()
            if state is not None:
                return Held(True, RunState(state))
            state = await connection.scalar(select(c.state).where(c.run_id == lease.run_id))
        if state is None:
            raise NotFound("run", lease.run_id)
        return Held(False, RunState(state))

    @uninterrupted
    async def give_back(self, lease: Lease) -> None:
        """Frees a lease at once, if it is still held."""
        c = s.runs.c
        async with self.engine.begin() as connection:
            await connection.execute(
                update(s.runs)
                .where(c.run_id == lease.run_id, c.epoch == lease.epoch)
                .values(owner="", leased_until=0, epoch=c.epoch + 1)
            )


def _now(connection: AsyncConnection) -> ColumnElement[int]:
    if connection.dialect.name == "postgresql":
        return cast(func.extract("epoch", func.clock_timestamp()) * 1_000_000, BigInteger)
    return literal(now_us(), BigInteger)
