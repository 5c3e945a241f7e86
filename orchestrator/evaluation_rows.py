"""Evaluations and the rewards they give: an outcome is final, and each reward is written once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import RowMapping, case, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator import schema as s
from orchestrator.evaluation_entries import Batch, Entry, key_of
from orchestrator.records import Pending, StoredEvaluation, StudentTally, Tally
from orchestrator.rows import Rows, uninterrupted
from orchestrator.run_events import Evaluate
from tutelage.v1 import evaluation_pb2
from tutelage.wire import evaluation as wire_evaluation

PIECE = 200
"""Rows that are read at a time where all of a run are."""


class EvaluationRows(Rows):
    """Reads and writes of evaluations and rewards."""

    @uninterrupted
    async def write(self, run_id: str, entries: Sequence[Entry]) -> list[bool]:
        """Writes entries in their order, in one transaction; which of them changed something.

        An evaluation that has ended stays as it is: a second outcome writes nothing.
        """
        async with self.engine.begin() as connection:
            # All who write evaluations of a run take this lock, so what is read here holds until the end.
            await self._locked(connection, run_id)
            batch = Batch(run_id, await self._known(connection, run_id, entries))
            changed = [batch.take(entry) for entry in entries]
            await batch.store(connection)
            await self._append_locked(connection, run_id, batch.events)
        return changed

    async def _known(
        self, connection: AsyncConnection, run_id: str, entries: Sequence[Entry]
    ) -> dict[tuple[str, str], str]:
        c = s.evaluations.c
        ids = list({key_of(entry)[0] for entry in entries})
        query = select(c.evaluation_id, c.student, c.state).where(c.run_id == run_id, c.evaluation_id.in_(ids))
        return {(row[0], row[1]): row[2] for row in await connection.execute(query)}

    @uninterrupted
    async def evaluations(
        self,
        run_id: str,
        *,
        evaluation_id: str | None = None,
        student: str | None = None,
        task_id: str | None = None,
        kept: Callable[[StoredEvaluation], StoredEvaluation] = lambda row: row,
    ) -> list[StoredEvaluation]:
        """Evaluations in the order they started: all, or those of an id, a student, a task.

        `kept` says what is kept of each before the next is read.
        """
        c = s.evaluations.c
        query = select(s.evaluations).where(c.run_id == run_id).order_by(c.started_at, c.evaluation_id)
        if evaluation_id is not None:
            query = query.where(c.evaluation_id == evaluation_id)
        if student is not None:
            query = query.where(c.student == student)
        if task_id is not None:
            query = query.where(c.task_id == task_id)
        async with self.reading.connect() as connection:
            # A piece at a time: thousands of outcomes as bytes beside the same as objects would be twice the memory.
            rows = await connection.stream(query, execution_options={"yield_per": PIECE})
            return [kept(_evaluation(row)) async for row in rows.mappings()]

    @uninterrupted
    async def count_evaluations(self, run_id: str) -> int:
        """How many evaluations a run has begun."""
        query = select(func.count()).where(s.evaluations.c.run_id == run_id)
        async with self.reading.connect() as connection:
            return int(await connection.scalar(query) or 0)

    @uninterrupted
    async def reward_rows(self, run_id: str) -> list[tuple[str, str, int, str]]:
        """(candidate, student, repeat, evaluation) of every reward given."""
        c = s.rewards.c
        query = select(c.candidate_id, c.student, c.repeat, c.evaluation_id).where(c.run_id == run_id)
        async with self.reading.connect() as connection:
            return [(row[0], row[1], row[2], row[3]) for row in await connection.execute(query)]

    @uninterrupted
    async def pending(self, run_id: str) -> dict[tuple[str, str], Pending]:
        """Evaluations that have begun and not ended, by (evaluation, student)."""
        c = s.evaluations.c
        query = select(c.evaluation_id, c.student, c.attempts, c.started_at)
        async with self.reading.connect() as connection:
            rows = await connection.execute(query.where(c.run_id == run_id, c.state == "pending"))
            return {(row[0], row[1]): Pending(row[2], row[3]) for row in rows}

    @uninterrupted
    async def first_failed(self, run_id: str) -> tuple[str, str, str] | None:
        """(evaluation, task, reason) of the first evaluation of a round that was given up; None while none was."""
        c = s.evaluations.c
        query = select(c.evaluation_id, c.task_id, c.reason).where(
            c.run_id == run_id, c.phase == "round", c.state == "failed"
        )
        async with self.reading.connect() as connection:
            row = (await connection.execute(query.order_by(c.ended_at, c.evaluation_id).limit(1))).first()
        return None if row is None else (row[0], row[1], row[2])

    @uninterrupted
    async def ended(self, run_id: str) -> list[tuple[Evaluate, str, float | None, float]]:
        """Evaluations of the rounds that have ended: what was evaluated, how it ended, its reward, its seconds."""
        c = s.evaluations.c
        query = select(c.round, c.task_id, c.edit, c.student, c.repeat, c.state, c.reward, c.seconds).where(
            c.run_id == run_id, c.phase == "round", c.state != "pending"
        )
        async with self.reading.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [(Evaluate(row[0], row[1], row[2], row[3], row[4]), row[5], row[6], row[7] or 0.0) for row in rows]

    @uninterrupted
    async def reward_states(self, run_id: str) -> list[tuple[str, str, str, float | None]]:
        """(candidate, student, state, reward) of every reward given."""
        c = s.rewards.c
        query = select(c.candidate_id, c.student, c.state, c.reward).where(c.run_id == run_id)
        async with self.reading.connect() as connection:
            return [(row[0], row[1], row[2], row[3]) for row in await connection.execute(query)]

    @uninterrupted
    async def evaluation_seconds(self, students: Sequence[str]) -> dict[str, float]:
        """Mean seconds of an evaluation by student, over all runs; those that were never timed are left out."""
        c = s.evaluations.c
        query = select(c.student, func.avg(c.seconds)).where(
            c.student.in_(students), c.state.in_(("report", "rejected")), c.seconds > 0
        )
        async with self.reading.connect() as connection:
            return {row[0]: float(row[1]) for row in await connection.execute(query.group_by(c.student))}

    @uninterrupted
    async def tally(self, run_id: str) -> Tally:
        """Counts and means over a run's rewards."""
        c, e = s.rewards.c, s.evaluations.c
        async with self.reading.connect() as connection:
            row = (
                await connection.execute(
                    select(
                        func.count(),
                        func.count(func.distinct(case((c.state == "rejected", c.candidate_id)))),
                        func.avg(c.reward),
                    ).where(c.run_id == run_id)
                )
            ).one()
            # Of one student without a reward, for a fault.
            lacking = (
                select(c.candidate_id)
                .where(c.run_id == run_id)
                .group_by(c.candidate_id, c.student)
                .having(func.count(c.reward) == 0, func.count(case((c.state == "failed", 1))) > 0)
                .subquery()
            )
            unscored = await connection.scalar(select(func.count(func.distinct(lacking.c.candidate_id))))
            by_student = await connection.execute(
                select(c.student, func.count().label("given"), func.avg(c.reward).label("mean"))
                .where(c.run_id == run_id)
                .group_by(c.student)
            )
            seconds = await connection.scalar(
                select(func.avg(e.seconds)).where(e.run_id == run_id, e.state.in_(("report", "rejected")))
            )
        return Tally(
            done=row[0],
            rejected=row[1],
            unscored=unscored or 0,
            mean_reward=_float(row[2]),
            students={row.student: StudentTally(row.given, _float(row.mean)) for row in by_student},
            mean_seconds=_float(seconds),
        )


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _evaluation(row: RowMapping) -> StoredEvaluation:
    outcome = None
    if row["outcome"] is not None:
        message = evaluation_pb2.EvaluationOutcome.FromString(row["outcome"])
        outcome = wire_evaluation.evaluation_outcome_from_wire(message)
    return StoredEvaluation(
        evaluation_id=row["evaluation_id"],
        student=row["student"],
        phase=row["phase"],
        round=row["round"],
        task_id=row["task_id"],
        edit=row["edit"],
        repeat=row["repeat"],
        adapter_version=row["adapter_version"],
        state=row["state"],
        attempts=row["attempts"],
        reason=row["reason"],
        outcome=outcome,
        reward=row["reward"],
        parts=json.loads(row["parts"] or "{}"),
        seconds=row["seconds"],
        replica=row["replica"],
        started_us=row["started_at"],
    )
