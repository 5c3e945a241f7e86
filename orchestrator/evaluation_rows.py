"""Evaluations and the rewards they give: an outcome is final, and each reward is written once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import RowMapping, bindparam, case, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator import schema as s
from orchestrator.database import now_us
from orchestrator.machine import Evaluate
from orchestrator.records import StoredEvaluation, StudentTally, Tally
from orchestrator.rows import Event, Rows, insert_or_ignore, uninterrupted
from tutelage.domain.evaluation import EvaluationOutcome, Failure
from tutelage.domain.reward import Reward
from tutelage.domain.self_edit import Rejection
from tutelage.v1 import evaluation_pb2
from tutelage.wire import evaluation as wire_evaluation


@dataclass(frozen=True)
class Begun:
    """An evaluation was given to a student."""

    evaluation_id: str
    work: Evaluate
    phase: str
    adapter_version: str
    at_us: int


@dataclass(frozen=True)
class TriedAgain:
    """An attempt failed and will be made again."""

    evaluation_id: str
    student: str
    detail: Mapping[str, object]


@dataclass(frozen=True)
class Ended:
    """An evaluation's outcome, and the candidates that earn its reward."""

    begun: Begun
    outcome: EvaluationOutcome
    reward: Reward | None
    seconds: float
    attempts: int
    candidate_ids: Sequence[str]
    replica: str


Entry = Begun | TriedAgain | Ended

PIECE = 200
"""Rows that are read at a time where all of a run are."""

_UPDATED = ("state", "reason", "outcome", "reward", "parts", "seconds", "attempts", "ended_at", "replica")


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
            batch = _Batch(run_id, await self._known(connection, run_id, entries))
            changed = [batch.take(entry) for entry in entries]
            await batch.store(connection)
            await self._append_locked(connection, run_id, batch.events)
        return changed

    async def _known(
        self, connection: AsyncConnection, run_id: str, entries: Sequence[Entry]
    ) -> dict[tuple[str, str], str]:
        c = s.evaluations.c
        ids = list({_key(entry)[0] for entry in entries})
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
    async def attempts(self, run_id: str) -> dict[tuple[str, str], int]:
        """Failed attempts of evaluations that have not ended, by (evaluation, student)."""
        c = s.evaluations.c
        query = select(c.evaluation_id, c.student, c.attempts).where(c.run_id == run_id, c.state == "pending")
        async with self.reading.connect() as connection:
            return {(row[0], row[1]): row[2] for row in await connection.execute(query)}

    @uninterrupted
    async def ended(self, run_id: str) -> list[tuple[Evaluate, float | None, float]]:
        """Evaluations of the rounds that have ended: what was evaluated, its reward, its seconds."""
        c = s.evaluations.c
        query = select(c.round, c.task_id, c.edit, c.student, c.repeat, c.reward, c.seconds).where(
            c.run_id == run_id, c.phase == "round", c.state != "pending"
        )
        async with self.reading.connect() as connection:
            rows = (await connection.execute(query)).all()
        return [(Evaluate(row[0], row[1], row[2], row[3], row[4]), row[5], row[6] or 0.0) for row in rows]

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
                        func.count(func.distinct(case((c.state == "failed", c.candidate_id)))),
                        func.avg(c.reward),
                    ).where(c.run_id == run_id)
                )
            ).one()
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
            unscored=row[2],
            mean_reward=_float(row[3]),
            students={row.student: StudentTally(row.given, _float(row.mean)) for row in by_student},
            mean_seconds=_float(seconds),
        )


class _Batch:
    """Entries turned into rows, each kind of which is written by one statement."""

    def __init__(self, run_id: str, known: dict[tuple[str, str], str]) -> None:
        self.run_id = run_id
        self._states = known
        self._made: dict[tuple[str, str], dict[str, Any]] = {}
        self._changed: list[dict[str, Any]] = []
        self._again: dict[tuple[str, str], int] = {}
        self._rewards: list[dict[str, Any]] = []
        self.events: list[Event] = []

    def take(self, entry: Entry) -> bool:
        match entry:
            case Begun():
                return self._begin(entry)
            case TriedAgain():
                return self._count_attempt(entry)
            case Ended():
                return self._end(entry)

    def _begin(self, entry: Begun) -> bool:
        key, work = _key(entry), entry.work
        if key in self._states:
            return False
        self._states[key] = "pending"
        self._made[key] = {
            "run_id": self.run_id,
            "evaluation_id": entry.evaluation_id,
            "student": work.student,
            "phase": entry.phase,
            "round": work.round,
            "task_id": work.task,
            "edit": work.edit,
            "repeat": work.repeat,
            "adapter_version": entry.adapter_version,
            "started_at": entry.at_us,
            **dict.fromkeys(_UPDATED),
            "state": "pending",
            "attempts": 0,
            "reason": "",
            "replica": "",
        }
        detail = {
            "evaluation": entry.evaluation_id,
            "round": work.round,
            "task": work.task,
            "student": work.student,
            "repeat": work.repeat,
            "phase": entry.phase,
        }
        self.events.append(("evaluation_started", detail))
        return True

    def _count_attempt(self, entry: TriedAgain) -> bool:
        key = _key(entry)
        if self._states.get(key) != "pending":
            return False
        if key in self._made:
            self._made[key]["attempts"] += 1
        else:
            self._again[key] = self._again.get(key, 0) + 1
        self.events.append(("evaluation_retry", entry.detail))
        return True

    def _end(self, entry: Ended) -> bool:
        key, work = _key(entry), entry.begun.work
        self._begin(entry.begun)
        if self._states[key] != "pending":
            return False
        state, reason = state_of(entry.outcome)
        self._states[key] = state
        value = None if entry.reward is None else entry.reward.value
        changes = {
            "state": state,
            "reason": reason,
            "outcome": wire_evaluation.evaluation_outcome_to_wire(entry.outcome).SerializeToString(),
            "reward": value,
            "parts": json.dumps(entry.reward.parts if entry.reward else {}, allow_nan=False),
            "seconds": entry.seconds,
            "attempts": entry.attempts,
            "ended_at": now_us(),
            "replica": entry.replica,
        }
        if key in self._made:
            self._made[key].update(changes)
        else:
            self._again.pop(key, None)
            self._changed.append({"key_evaluation": key[0], "key_student": key[1], **changes})
        self._rewards += [
            {
                "run_id": self.run_id,
                "candidate_id": candidate_id,
                "student": work.student,
                "repeat": work.repeat,
                "evaluation_id": key[0],
                "state": state,
                "reward": value,
            }
            for candidate_id in entry.candidate_ids
        ]
        detail = {
            "evaluation": key[0],
            "student": work.student,
            "round": work.round,
            "task": work.task,
            "repeat": work.repeat,
            "phase": entry.begun.phase,
            "candidates": list(entry.candidate_ids),
            "outcome": state,
            "reason": reason,
            "reward": value,
            "attempts": entry.attempts,
            "seconds": round(entry.seconds, 3),
        }
        self.events.append(("evaluation_done", detail))
        return True

    async def store(self, connection: AsyncConnection) -> None:
        c = s.evaluations.c
        where = (c.run_id == self.run_id, c.evaluation_id == bindparam("key_evaluation"))
        where_ = (*where, c.student == bindparam("key_student"), c.state == "pending")
        if self._made:
            await connection.execute(insert(s.evaluations), list(self._made.values()))
        if self._changed:
            columns: dict[str, Any] = {name: bindparam(name) for name in _UPDATED}
            await connection.execute(update(s.evaluations).where(*where_).values(columns), self._changed)
        if self._again:
            rows = [
                {"key_evaluation": key[0], "key_student": key[1], "more": count} for key, count in self._again.items()
            ]
            counted = {"attempts": c.attempts + bindparam("more")}
            await connection.execute(update(s.evaluations).where(*where_).values(counted), rows)
        if self._rewards:
            await connection.execute(insert_or_ignore(connection, s.rewards), self._rewards)


def _key(entry: Entry) -> tuple[str, str]:
    match entry:
        case Begun():
            return entry.evaluation_id, entry.work.student
        case TriedAgain():
            return entry.evaluation_id, entry.student
        case Ended():
            return _key(entry.begun)


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def state_of(outcome: EvaluationOutcome) -> tuple[str, str]:
    """The state a row is in after an outcome, and why."""
    match outcome:
        case Rejection():
            at = f" {outcome.field}={outcome.value} (allowed: {outcome.allowed})" if outcome.field else ""
            return "rejected", f"{outcome.reason.value}{at} {outcome.message}".strip()
        case Failure():
            return "failed", outcome.message
    return "report", ""


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
    )
