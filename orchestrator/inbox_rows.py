"""Inboxes in the database: a document is taken once, belongs to one run at a time, and its end is written once.

Every method is one transaction. What begins a batch (claim) and what ends it or takes it back (settle) moves documents,
batch and window together, so that a restart at any instant finds all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator import schema as s
from orchestrator.database import now_us, to_datetime
from orchestrator.rows import Rows, insert_or_ignore, inserted, uninterrupted
from orchestrator.schedule import Begin, Window
from tutelage.domain.canonical import content_hash
from tutelage.domain.errors import AlreadyExists
from tutelage.domain.inbox import InboxDocument, InboxDocumentState, InboxOutcome
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask
from tutelage.v1 import orchestrator_service_pb2
from tutelage.wire.task import submission_from_wire, task_with_quiz_to_wire

WAITING, WORKING = InboxDocumentState.WAITING.value, InboxDocumentState.WORKING.value


@dataclass(frozen=True)
class Batch:
    """Documents that one run works on."""

    run_id: str
    inbox: str
    window_start: int
    """Microseconds since 1970, UTC."""
    reserved: int
    tasks: tuple[TaskWithQuiz, ...]
    attempts: Mapping[str, int]
    """By task id, the runs before this one that faults kept from deciding it."""


@dataclass(frozen=True)
class Ending:
    """What becomes of a document after its batch."""

    state: InboxDocumentState
    attempts: int
    message: str


def _microseconds(window: Window) -> int:
    return round(window.start.timestamp() * 1_000_000)


class InboxRows(Rows):
    """Reads and writes of inboxes."""

    @uninterrupted
    async def submit(self, inbox: str, tasks: Sequence[TaskWithQuiz], source: str) -> int:
        """Takes documents in, all or none, and says how many are new; those with the same content stay as they are.

        AlreadyExists names those that are there with other content.
        """
        now = now_us()
        c = s.inbox_documents.c
        other: list[str] = []
        new = 0
        async with self.engine.connect() as connection, connection.begin() as transaction:
            # By their ids: two submissions of the same documents in different orders would wait for each other.
            for position, item in sorted(enumerate(tasks), key=lambda each: each[1].task.id):
                row = {
                    "inbox": inbox,
                    "task_id": item.task.id,
                    "content_hash": content_hash(item),
                    "payload": task_with_quiz_to_wire(item).SerializeToString(),
                    "source": source,
                    "submitted_at": now,
                    "position": position,
                    "state": WAITING,
                    "run_id": "",
                    "attempts": 0,
                    "message": "",
                }
                if await inserted(connection, s.inbox_documents, row):
                    new += 1
                    continue
                where = (c.inbox == inbox, c.task_id == item.task.id)
                if await connection.scalar(select(c.content_hash).where(*where)) != row["content_hash"]:
                    other.append(item.task.id)
            if other:
                await transaction.rollback()
                raise AlreadyExists(
                    f"inbox {inbox!r} has documents with these ids and other content: {', '.join(other)}"
                )
        return new

    @uninterrupted
    async def waiting(self, inbox: str, limit: int) -> list[str]:
        """Ids of the oldest documents that wait."""
        c = s.inbox_documents.c
        query = (
            select(c.task_id)
            .where(c.inbox == inbox, c.state == WAITING)
            .order_by(c.submitted_at, c.position, c.task_id)
            .limit(limit)
        )
        async with self.engine.connect() as connection:
            return [str(task_id) for task_id in await connection.scalars(query)]

    @uninterrupted
    async def tasks(self, inbox: str, keys: Sequence[str]) -> list[TaskWithQuiz]:
        """Documents by their ids, in no order."""
        c = s.inbox_documents.c
        query = select(c.payload).where(c.inbox == inbox, c.task_id.in_(keys))
        async with self.engine.connect() as connection:
            return [_task(payload) for payload in await connection.scalars(query)]

    @uninterrupted
    async def give_quiz(self, inbox: str, item: TaskWithQuiz) -> None:
        """Stores the questions that were made for a document that waits."""
        c = s.inbox_documents.c
        payload = task_with_quiz_to_wire(item).SerializeToString()
        where = (c.inbox == inbox, c.task_id == item.task.id, c.state == WAITING)
        async with self.engine.begin() as connection:
            await connection.execute(update(s.inbox_documents).where(*where).values(payload=payload))

    @uninterrupted
    async def give_up(self, inbox: str, task_id: str, message: str) -> None:
        """Ends a document that waits and cannot be learned."""
        c = s.inbox_documents.c
        failed = InboxDocumentState.FAILED.value
        where = (c.inbox == inbox, c.task_id == task_id, c.state == WAITING)
        async with self.engine.begin() as connection:
            await connection.execute(update(s.inbox_documents).where(*where).values(state=failed, message=message))

    @uninterrupted
    async def last_window(self, inbox: str) -> Window | None:
        """The newest window in which anything was begun."""
        c = s.inbox_windows.c
        query = select(s.inbox_windows).where(c.inbox == inbox).order_by(c.start.desc()).limit(1)
        async with self.engine.connect() as connection:
            row = (await connection.execute(query)).mappings().first()
        return None if row is None else Window(to_datetime(row["start"]), row["spent"], row["batches"])

    @uninterrupted
    async def claim(self, inbox: str, run_id: str, begin: Begin) -> bool:
        """Gives waiting documents to a run and reserves its cost; False, with nothing changed, when it is too late.

        Too late: another orchestrator claimed meanwhile, so that the window, the documents or an open batch differ.
        """
        start = _microseconds(begin.window)
        w, d = s.inbox_windows.c, s.inbox_documents.c
        async with self.engine.connect() as connection, connection.begin() as transaction:
            empty = {"inbox": inbox, "start": start, "spent": 0, "batches": 0}
            await connection.execute(insert_or_ignore(connection, s.inbox_windows, empty))
            # The row is locked until the end: claims of one window come one after the other.
            moved = await connection.execute(
                update(s.inbox_windows)
                .where(
                    w.inbox == inbox,
                    w.start == start,
                    w.spent == begin.window.spent,
                    w.batches == begin.window.batches,
                )
                .values(spent=w.spent + begin.cost, batches=w.batches + 1)
            )
            taken = await connection.execute(
                update(s.inbox_documents)
                .where(d.inbox == inbox, d.task_id.in_(begin.keys), d.state == WAITING)
                .values(state=WORKING, run_id=run_id)
            )
            busy = await self._open_run(connection, inbox)
            if moved.rowcount != 1 or taken.rowcount != len(begin.keys) or busy is not None:
                await transaction.rollback()
                return False
            batch = {"run_id": run_id, "inbox": inbox, "window_start": start, "reserved": begin.cost}
            await connection.execute(insert(s.inbox_batches), batch)
        return True

    async def _open_run(self, connection: AsyncConnection, inbox: str) -> str | None:
        c = s.inbox_batches.c
        found = await connection.scalar(select(c.run_id).where(c.inbox == inbox, c.spent.is_(None)).limit(1))
        return None if found is None else str(found)

    @uninterrupted
    async def open_batch(self, inbox: str) -> Batch | None:
        """The batch that is under way."""
        async with self.engine.connect() as connection:
            run_id = await self._open_run(connection, inbox)
            if run_id is None:
                return None
            row = (
                (await connection.execute(select(s.inbox_batches).where(s.inbox_batches.c.run_id == run_id)))
                .mappings()
                .one()
            )
            c = s.inbox_documents.c
            documents = (
                (
                    await connection.execute(
                        select(c.payload, c.task_id, c.attempts)
                        .where(c.inbox == inbox, c.run_id == run_id, c.state == WORKING)
                        .order_by(c.submitted_at, c.position, c.task_id)
                    )
                )
                .mappings()
                .all()
            )
        return Batch(
            run_id,
            inbox,
            row["window_start"],
            row["reserved"],
            tuple(_task(each["payload"]) for each in documents),
            {each["task_id"]: each["attempts"] for each in documents},
        )

    @uninterrupted
    async def settle(self, batch: Batch, spent: int, endings: Mapping[str, Ending], *, begun: bool = True) -> bool:
        """Ends a batch, once: what became of its documents, and what it really used; False when it had ended.

        A batch that is not `begun` is taken back: False, with nothing changed, when its run is there all the same.
        """
        b, w, d = s.inbox_batches.c, s.inbox_windows.c, s.inbox_documents.c
        async with self.engine.connect() as connection, connection.begin() as transaction:
            # Locks the row that `create_run` asks for, so that either sees what the other did.
            ended = await connection.execute(
                update(s.inbox_batches).where(b.run_id == batch.run_id, b.spent.is_(None)).values(spent=spent)
            )
            there = await connection.scalar(select(s.runs.c.run_id).where(s.runs.c.run_id == batch.run_id))
            if ended.rowcount != 1 or (there is not None and not begun):
                await transaction.rollback()
                return False
            await connection.execute(
                update(s.inbox_windows)
                .where(w.inbox == batch.inbox, w.start == batch.window_start)
                .values(spent=w.spent - batch.reserved + spent)
            )
            for task_id, ending in endings.items():
                waits = ending.state is InboxDocumentState.WAITING
                await connection.execute(
                    update(s.inbox_documents)
                    .where(d.inbox == batch.inbox, d.task_id == task_id, d.run_id == batch.run_id, d.state == WORKING)
                    .values(
                        state=ending.state.value,
                        attempts=ending.attempts,
                        message=ending.message,
                        run_id="" if waits else batch.run_id,
                    )
                )
        return True

    @uninterrupted
    async def run_state(self, run_id: str) -> str | None:
        """State of a run; None when there is none by that id."""
        query = select(s.runs.c.state).where(s.runs.c.run_id == run_id)
        async with self.engine.connect() as connection:
            found = await connection.scalar(query)
        return None if found is None else str(found)

    @uninterrupted
    async def counts(self, inbox: str) -> dict[str, int]:
        """Documents by state."""
        c = s.inbox_documents.c
        query = select(c.state, func.count()).where(c.inbox == inbox).group_by(c.state)
        async with self.engine.connect() as connection:
            found = {str(state): int(count) for state, count in await connection.execute(query)}
        return {state.value: found.get(state.value, 0) for state in InboxDocumentState}

    @uninterrupted
    async def documents(self, inbox: str) -> list[InboxDocument]:
        """All documents in the order they came, with what became of them in each student."""
        c, k = s.inbox_documents.c, s.commits.c
        query = select(s.inbox_documents).where(c.inbox == inbox).order_by(c.submitted_at, c.position, c.task_id)
        decided = (
            select(k.run_id, k.task_id, k.student, k.committed, k.reason, k.version, k.fault)
            .join(s.inbox_batches, s.inbox_batches.c.run_id == k.run_id)
            .where(s.inbox_batches.c.inbox == inbox)
            .order_by(k.student)
        )
        async with self.engine.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
            outcomes: dict[tuple[str, str], list[InboxOutcome]] = {}
            for row in (await connection.execute(decided)).mappings():
                outcomes.setdefault((row["run_id"], row["task_id"]), []).append(
                    InboxOutcome(
                        row["student"], bool(row["committed"]), row["reason"], row["version"], bool(row["fault"])
                    )
                )
        return [
            InboxDocument(
                id=row["task_id"],
                title=_title(_task(row["payload"])),
                source=row["source"],
                submitted_at=to_datetime(row["submitted_at"]),
                state=InboxDocumentState(row["state"]),
                run_id=row["run_id"],
                attempts=row["attempts"],
                message=row["message"],
                outcomes=tuple(outcomes.get((row["run_id"], row["task_id"]), ())),
            )
            for row in rows
        ]


def _task(payload: bytes) -> TaskWithQuiz:
    return submission_from_wire(orchestrator_service_pb2.TaskWithQuiz.FromString(payload))


def _title(item: TaskWithQuiz) -> str:
    content = item.task.content
    return content.title if isinstance(content, DocumentTask) else content.instruction[:80]
