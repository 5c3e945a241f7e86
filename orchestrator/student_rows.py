"""Which adapter version is current for each logical student: one row, changed by compare-and-set, with its history."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from orchestrator import schema as s
from orchestrator.database import now_us, reading, to_datetime
from orchestrator.rows import insert_or_ignore, uninterrupted
from tutelage.domain.errors import Conflict


@dataclass(frozen=True)
class CurrentVersion:
    version: str
    """Empty means the untouched base model."""
    changed_at: datetime | None = None
    previous: tuple[str, ...] = ()
    """What going back leads to, newest first."""
    left: tuple[str, ...] = ()
    """What was gone back from, last left first."""


def before_and_left(line: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """From the versions in the order in which they became current: those before the last one, and those gone back from.

    Making a version current that was before the current one is going back: both it and what came after it stop being
    "before", so that going back again goes further back.
    """
    before: list[str] = []
    left: list[str] = []
    now = line[0]
    for version in line[1:]:
        if version in before:
            at = before.index(version)
            left = [now, *reversed(before[at + 1 :]), *left]
            del before[at:]
        else:
            before.append(now)
        left = [each for each in left if each != version]
        now = version
    return tuple(reversed(before)), tuple(left)


async def set_version(connection: AsyncConnection, student: str, expected: str, version: str) -> None:
    """Makes a version current if the expected one is; otherwise Conflict. Setting what is current changes nothing."""
    await connection.execute(insert_or_ignore(connection, s.students, {"name": student, "version": ""}))
    changed = await connection.execute(
        update(s.students)
        .where(s.students.c.name == student, s.students.c.version == expected)
        .values(version=version, changed_at=now_us() if version != expected else s.students.c.changed_at)
    )
    if not changed.rowcount:
        current = await connection.scalar(select(s.students.c.version).where(s.students.c.name == student))
        raise Conflict(f"student {student!r} is at version {current!r}, not at {expected!r}")
    if version != expected:
        latest = await connection.scalar(
            select(func.max(s.student_history.c.position)).where(s.student_history.c.name == student)
        )
        entry = {"name": student, "position": (latest or 0) + 1, "version": expected, "replaced_at": now_us()}
        await connection.execute(insert(s.student_history), entry)


class StudentRows:
    """Reads and changes the rows; every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reading = reading(engine)

    @uninterrupted
    async def current(self, student: str) -> CurrentVersion:
        """The student's current version; a student without a row is at the untouched base model."""
        history = s.student_history.c
        async with self._reading.connect() as connection:
            row = (await connection.execute(select(s.students).where(s.students.c.name == student))).mappings().first()
            replaced = await connection.scalars(
                select(history.version).where(history.name == student).order_by(history.position)
            )
        if row is None:
            return CurrentVersion("")
        changed_at = None if row["changed_at"] is None else to_datetime(row["changed_at"])
        previous, left = before_and_left([*replaced, row["version"]])
        return CurrentVersion(row["version"], changed_at, previous, left)

    @uninterrupted
    async def versions(self, names: Iterable[str]) -> dict[str, str]:
        """The current version of each of the students."""
        async with self._reading.connect() as connection:
            rows = await connection.execute(select(s.students.c.name, s.students.c.version))
            stored = {row[0]: row[1] for row in rows}
        return {name: stored.get(name, "") for name in names}

    @uninterrupted
    async def compare_and_set(self, student: str, expected: str, version: str) -> CurrentVersion:
        """Conflict when another version is current."""
        async with self._engine.begin() as connection:
            await set_version(connection, student, expected, version)
        return await self.current(student)
