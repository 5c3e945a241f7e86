"""Evaluations and the rewards they give: an outcome is final, and each reward is written once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from sqlalchemy import RowMapping, case, func, select, update

from orchestrator import schema as s
from orchestrator.database import now_us
from orchestrator.machine import Evaluate
from orchestrator.records import StoredEvaluation, Tally
from orchestrator.rows import Rows, insert_or_ignore, inserted, uninterrupted
from tutelage.domain.evaluation import EvaluationReport, Failure
from tutelage.domain.reward import Reward
from tutelage.domain.self_edit import Rejection
from tutelage.v1 import evaluation_pb2
from tutelage.wire import evaluation as wire_evaluation


class EvaluationRows(Rows):
    """Reads and writes of evaluations and rewards."""

    @uninterrupted
    async def begin_evaluation(
        self, run_id: str, evaluation_id: str, work: Evaluate, phase: str, adapter_version: str
    ) -> StoredEvaluation:
        """The evaluation's row, made when missing; a final one holds the outcome."""
        row = {
            "run_id": run_id,
            "evaluation_id": evaluation_id,
            "student": work.student,
            "phase": phase,
            "round": work.round,
            "task_id": work.task,
            "edit": work.edit,
            "repeat": work.repeat,
            "adapter_version": adapter_version,
            "state": "pending",
            "attempts": 0,
            "reason": "",
            "started_at": now_us(),
        }
        async with self.engine.begin() as connection:
            made = await inserted(connection, s.evaluations, row)
            if made:
                detail = {
                    "evaluation": evaluation_id,
                    "round": work.round,
                    "task": work.task,
                    "student": work.student,
                    "repeat": work.repeat,
                    "phase": phase,
                }
                await self._append(connection, run_id, [("evaluation_started", detail)])
        return (await self.evaluations(run_id, evaluation_id=evaluation_id, student=work.student))[0]

    @uninterrupted
    async def note_attempt(self, run_id: str, evaluation_id: str, student: str, detail: Mapping[str, object]) -> None:
        """Counts a failed attempt that will be tried again."""
        c = s.evaluations.c
        where = (c.run_id == run_id, c.evaluation_id == evaluation_id, c.student == student, c.state == "pending")
        async with self.engine.begin() as connection:
            await connection.execute(update(s.evaluations).where(*where).values(attempts=c.attempts + 1))
            await self._append(connection, run_id, [("evaluation_retry", detail)])

    @uninterrupted
    async def end_evaluation(
        self,
        run_id: str,
        evaluation_id: str,
        student: str,
        outcome: EvaluationReport | Rejection | Failure,
        reward: Reward | None,
        seconds: float,
        candidate_ids: Sequence[str],
    ) -> StoredEvaluation:
        """Writes the outcome and the candidates' rewards unless one is there; gives back what is stored."""
        state, reason = _state_of(outcome)
        c = s.evaluations.c
        where = (c.run_id == run_id, c.evaluation_id == evaluation_id, c.student == student)
        value = None if reward is None else reward.value
        async with self.engine.begin() as connection:
            ended = await connection.execute(
                update(s.evaluations)
                .where(*where, c.state == "pending")
                .values(
                    state=state,
                    reason=reason,
                    outcome=wire_evaluation.evaluation_outcome_to_wire(outcome).SerializeToString(),
                    reward=value,
                    parts=json.dumps(reward.parts if reward else {}, allow_nan=False),
                    seconds=seconds,
                    attempts=c.attempts + 1,
                    ended_at=now_us(),
                )
            )
            if ended.rowcount:
                row = (
                    await connection.execute(select(c.round, c.task_id, c.repeat, c.phase, c.attempts).where(*where))
                ).one()
                earned = [
                    {
                        "run_id": run_id,
                        "candidate_id": candidate_id,
                        "student": student,
                        "repeat": row.repeat,
                        "evaluation_id": evaluation_id,
                        "state": state,
                        "reward": value,
                    }
                    for candidate_id in candidate_ids
                ]
                if earned:
                    await connection.execute(insert_or_ignore(connection, s.rewards, earned))
                detail = {
                    "evaluation": evaluation_id,
                    "student": student,
                    "round": row.round,
                    "task": row.task_id,
                    "repeat": row.repeat,
                    "phase": row.phase,
                    "candidates": list(candidate_ids),
                    "outcome": state,
                    "reason": reason,
                    "reward": value,
                    "attempts": row.attempts,
                    "seconds": round(seconds, 3),
                }
                await self._append(connection, run_id, [("evaluation_done", detail)])
        return (await self.evaluations(run_id, evaluation_id=evaluation_id, student=student))[0]

    @uninterrupted
    async def evaluations(
        self, run_id: str, *, evaluation_id: str | None = None, student: str | None = None
    ) -> list[StoredEvaluation]:
        """Evaluations in the order they started, all or one."""
        c = s.evaluations.c
        query = select(s.evaluations).where(c.run_id == run_id).order_by(c.started_at, c.evaluation_id)
        if evaluation_id is not None:
            query = query.where(c.evaluation_id == evaluation_id)
        if student is not None:
            query = query.where(c.student == student)
        async with self.engine.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [_evaluation(row) for row in rows]

    @uninterrupted
    async def reward_rows(self, run_id: str) -> list[tuple[str, str, int, str]]:
        """(candidate, student, repeat, evaluation) of every reward given."""
        c = s.rewards.c
        query = select(c.candidate_id, c.student, c.repeat, c.evaluation_id).where(c.run_id == run_id)
        async with self.engine.connect() as connection:
            return [(row[0], row[1], row[2], row[3]) for row in await connection.execute(query)]

    @uninterrupted
    async def tally(self, run_id: str) -> Tally:
        """Counts and means over a run's rewards."""
        c, e = s.rewards.c, s.evaluations.c
        async with self.engine.connect() as connection:
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
                select(c.student, func.count().label("given")).where(c.run_id == run_id).group_by(c.student)
            )
            seconds = await connection.scalar(
                select(func.avg(e.seconds)).where(e.run_id == run_id, e.state.in_(("report", "rejected")))
            )
        return Tally(
            done=row[0],
            rejected=row[1],
            unscored=row[2],
            mean_reward=None if row[3] is None else float(row[3]),
            done_by_student={row.student: row.given for row in by_student},
            mean_seconds=None if seconds is None else float(seconds),
        )


def _state_of(outcome: EvaluationReport | Rejection | Failure) -> tuple[str, str]:
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
    )
