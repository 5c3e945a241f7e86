"""What the teacher wrote and learned, and what students kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from orchestrator import schema as s
from orchestrator.plan import Group
from orchestrator.records import Run, StoredCandidate, StoredUpdate
from orchestrator.rows import Event, Rows, insert_or_ignore, inserted, uninterrupted
from orchestrator.student_rows import set_version
from tutelage.domain.canonical import content_hash
from tutelage.domain.evaluation import QuizResult
from tutelage.domain.policy import Candidate, UpdateResult
from tutelage.domain.self_edit import Rejection
from tutelage.v1 import evaluation_pb2, policy_pb2
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.wire import evaluation as wire_evaluation
from tutelage.wire import policy as wire_policy
from tutelage.wire.update_result import update_result_from_wire, update_result_to_wire

QUIZZES = ("quiz_before", "quiz_after", "retention_after")
"""Columns of a commit that hold answers."""


class LearningRows(Rows):
    """Reads and writes of candidates, policy updates and commits."""

    @uninterrupted
    async def add_group(self, run: Run, group: Group, written: Sequence[Candidate]) -> bool:
        """Stores all candidates of a group at once; False when they were there. Rejected ones get their reward here."""
        rows, earned, told = [], [], []
        round_, task_id = group.round, group.task
        for candidate in written:
            candidate_id = f"{run.run_id}/{round_}/{task_id}/{candidate.index}"
            rejected = isinstance(candidate.result, Rejection)
            rows.append(
                {
                    "run_id": run.run_id,
                    "round": round_,
                    "task_id": task_id,
                    "index": candidate.index,
                    "candidate_id": candidate_id,
                    "edit": None if rejected else content_hash(candidate.result),
                    "payload": wire_policy.candidate_to_wire(candidate).SerializeToString(),
                }
            )
            reason = candidate.result.reason.value if isinstance(candidate.result, Rejection) else ""
            told.append(
                (
                    "candidate_written",
                    {
                        "candidate": candidate_id,
                        "round": round_,
                        "task": task_id,
                        "index": candidate.index,
                        "tokens": candidate.completion_tokens,
                        "rejected": reason,
                        "text": candidate.text[:200],
                    }
                    | ({"student": group.audience} if group.audience else {}),
                )
            )
            if rejected:
                earned += [
                    {
                        "run_id": run.run_id,
                        "candidate_id": candidate_id,
                        "student": student,
                        "repeat": repeat,
                        "evaluation_id": "",
                        "state": "rejected",
                        "reward": run.config.reward.rejected_reward,
                    }
                    for student in run.plan.readers(group.audience)
                    for repeat in range(run.config.evaluation_seeds)
                ]
        try:
            async with self.engine.begin() as connection:
                await self._locked(connection, run.run_id)
                await connection.execute(insert(s.candidates), rows)
                if earned:
                    await connection.execute(insert(s.rewards), earned)
                await self._append_locked(connection, run.run_id, told)
        except IntegrityError:
            return False
        return True

    @uninterrupted
    async def candidates(
        self, run_id: str, *, round_: int | None = None, task_id: str | None = None
    ) -> list[StoredCandidate]:
        """Candidates in order of round, task and index: all, those of a round, or of a task."""
        c = s.candidates.c
        query = select(s.candidates).where(c.run_id == run_id).order_by(c.round, c.task_id, c.index)
        if round_ is not None:
            query = query.where(c.round == round_)
        if task_id is not None:
            query = query.where(c.task_id == task_id)
        async with self.reading.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            StoredCandidate(
                row["candidate_id"],
                row["round"],
                row["task_id"],
                row["edit"],
                wire_policy.candidate_from_wire(policy_pb2.Candidate.FromString(row["payload"])),
            )
            for row in rows
        ]

    @uninterrupted
    async def edits(self, run_id: str) -> list[tuple[int, str, int, str | None]]:
        """(round, task, index, content hash of the edit) of every candidate, in this order."""
        c = s.candidates.c
        query = select(c.round, c.task_id, c.index, c.edit).where(c.run_id == run_id)
        async with self.reading.connect() as connection:
            rows = await connection.execute(query.order_by(c.round, c.task_id, c.index))
            return [(row[0], row[1], row[2], row[3]) for row in rows]

    @uninterrupted
    async def add_update(self, run_id: str, round_: int, result: UpdateResult, events: Sequence[Event]) -> StoredUpdate:
        """Stores a round's update once; gives back what is stored."""
        row = {
            "run_id": run_id,
            "round": round_,
            "version": result.policy.version,
            "payload": update_result_to_wire(result).SerializeToString(),
        }
        async with self.engine.begin() as connection:
            await self._locked(connection, run_id)
            made = await inserted(connection, s.updates, row)
            if made:
                await self._append_locked(connection, run_id, events)
        return next(item for item in await self.updates(run_id) if item.round == round_)

    @uninterrupted
    async def latest_update(self, run_id: str) -> tuple[int, str] | None:
        """Round and version of the newest update."""
        c = s.updates.c
        query = select(c.round, c.version).where(c.run_id == run_id).order_by(c.round.desc()).limit(1)
        async with self.reading.connect() as connection:
            row = (await connection.execute(query)).first()
        return None if row is None else (row.round, row.version)

    @uninterrupted
    async def updates(self, run_id: str) -> list[StoredUpdate]:
        """Policy updates by round."""
        query = select(s.updates).where(s.updates.c.run_id == run_id).order_by(s.updates.c.round)
        async with self.reading.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            StoredUpdate(
                row["round"],
                row["version"],
                update_result_from_wire(teacher_pb.UpdateResult.FromString(row["payload"])),
            )
            for row in rows
        ]

    @uninterrupted
    async def add_commit(self, run_id: str, row: Mapping[str, Any], detail: Mapping[str, object]) -> None:
        """Records a commit's decision once, and in the same transaction moves the student's version when committed.

        Conflict (and nothing written) when the student's version is no longer `parent_version`.
        """
        values = {"run_id": run_id, **dict.fromkeys(QUIZZES, QuizResult()), **row}
        for name in QUIZZES:
            values[name] = wire_evaluation.quiz_result_to_wire(values[name]).SerializeToString()
        async with self.engine.begin() as connection:
            await self._locked(connection, run_id)
            made = await inserted(connection, s.commits, values)
            if not made:
                return
            if row["committed"]:
                await set_version(connection, row["student"], row["parent_version"], row["version"])
            kind = "committed" if row["committed"] else "not_committed"
            await self._append_locked(connection, run_id, [(kind, detail)])

    @uninterrupted
    async def add_utilisation(self, run_id: str, used: Mapping[str, tuple[float, float]]) -> None:
        """Adds slot-seconds (used, there) by actor to what is stored."""
        c = s.utilisation.c
        async with self.engine.begin() as connection:
            await self._locked(connection, run_id, also_ended=True)
            if not used:
                return
            none = [{"run_id": run_id, "actor": actor, "busy_s": 0.0, "capacity_s": 0.0} for actor in used]
            await connection.execute(insert_or_ignore(connection, s.utilisation), none)
            more = [{"of": actor, "busy": busy_s, "capacity": there_s} for actor, (busy_s, there_s) in used.items()]
            await connection.execute(
                update(s.utilisation)
                .where(c.run_id == run_id, c.actor == bindparam("of"))
                .values(busy_s=c.busy_s + bindparam("busy"), capacity_s=c.capacity_s + bindparam("capacity")),
                more,
            )

    @uninterrupted
    async def utilisation(self, run_id: str) -> dict[str, tuple[float, float]]:
        """Slot-seconds (used, there) by actor: `teacher` and `student/NAME`."""
        c = s.utilisation.c
        async with self.reading.connect() as connection:
            rows = await connection.execute(select(c.actor, c.busy_s, c.capacity_s).where(c.run_id == run_id))
            return {row[0]: (row[1], row[2]) for row in rows}

    @uninterrupted
    async def teacher_seconds(self) -> float | None:
        """Mean seconds the teacher was busy for a group, updates included, over all runs."""
        c, g = s.utilisation.c, s.candidates.c
        timed = select(c.run_id).where(c.actor == "teacher", c.busy_s > 0)
        groups = select(g.run_id, g.round, g.task_id).where(g.run_id.in_(timed)).distinct().subquery()
        async with self.reading.connect() as connection:
            busy = await connection.scalar(select(func.sum(c.busy_s)).where(c.actor == "teacher"))
            count = await connection.scalar(select(func.count()).select_from(groups))
        return float(busy) / count if busy and count else None

    @uninterrupted
    async def commits(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of decided commits, quizzes decoded."""
        c = s.commits.c
        query = select(s.commits).where(c.run_id == run_id).order_by(c.student, c.task_id)
        async with self.reading.connect() as connection:
            rows = [dict(row) for row in (await connection.execute(query)).mappings()]
        for row in rows:
            for name in QUIZZES:
                row[name] = wire_evaluation.quiz_result_from_wire(
                    evaluation_pb2.QuizResult.FromString(row[name] or b"")
                )
        return rows
