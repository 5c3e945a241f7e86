"""The durable store of runs: what is written here has happened, and each reward is written once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import case, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from orchestrator import schema as s
from orchestrator.database import migrate, now_us, open_engine, to_datetime
from orchestrator.machine import Evaluate
from orchestrator.records import Run, RunStudent, StoredCandidate, StoredEvaluation, StoredUpdate, Tally
from orchestrator.run_config import RunConfig
from orchestrator.student_rows import set_version
from tutelage.domain.canonical import content_hash
from tutelage.domain.errors import AlreadyExists, NotFound
from tutelage.domain.evaluation import EvaluationReport, Failure, QuizResult
from tutelage.domain.policy import Candidate, UpdateResult
from tutelage.domain.reward import Reward
from tutelage.domain.run import RunEvent, RunState
from tutelage.domain.self_edit import Rejection
from tutelage.settings import parse_settings
from tutelage.v1 import evaluation_pb2, orchestrator_service_pb2, policy_pb2, student_service_pb2, task_pb2
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.wire import description as wire_description
from tutelage.wire import evaluation as wire_evaluation
from tutelage.wire import policy as wire_policy
from tutelage.wire import task as wire_task

Event = tuple[str, Mapping[str, object]]
"""Kind and detail."""


def insert_or_ignore(
    connection: AsyncConnection, table: Any, rows: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> Any:
    """An insert that leaves existing rows as they are."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table).values(rows).on_conflict_do_nothing()


class Store:
    """All reads and writes of runs; every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @classmethod
    async def open(cls, url: str) -> Store:
        """Opens and migrates the database."""
        engine = open_engine(url)
        await migrate(engine)
        return cls(engine)

    async def close(self) -> None:
        """Closes all connections."""
        await self.engine.dispose()

    async def _append(self, connection: AsyncConnection, run_id: str, events: Iterable[Event]) -> None:
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

    async def append(self, run_id: str, *events: Event) -> None:
        """Adds events with the next sequence numbers."""
        async with self.engine.begin() as connection:
            await self._append(connection, run_id, events)

    async def create_run(self, run: Run) -> bool:
        """Stores a new run; False when the same is there. AlreadyExists when the id has other content."""
        row = {
            "run_id": run.run_id,
            "content_hash": run.content_hash,
            "config_yaml": run.config_yaml,
            "retention_quiz": wire_task.quiz_to_wire(run.retention_quiz).SerializeToString(),
            "format": wire_policy.format_to_wire(run.format).SerializeToString(),
            "teacher": wire_description.teacher_description_to_wire(run.teacher).SerializeToString(),
            "policy_version": run.policy_version,
            "state": run.state.value,
            "message": run.message,
            "created_at": now_us(),
        }
        started: Event = (
            "run_started",
            {
                "tasks": len(run.tasks),
                "students": list(run.config.students),
                "rounds": run.config.rounds,
                "candidates": run.config.candidates,
                "evaluations": run.plan.evaluations,
                "policy_version": run.policy_version,
                "adapter_versions": {name: student.adapter_version for name, student in run.students.items()},
            },
        )
        try:
            async with self.engine.begin() as connection:
                await connection.execute(insert(s.runs), row)
                await connection.execute(
                    insert(s.run_students),
                    [
                        {
                            "run_id": run.run_id,
                            "student": student.name,
                            "description": wire_description.student_description_to_wire(
                                student.description
                            ).SerializeToString(),
                            "adapter_version": student.adapter_version,
                        }
                        for student in run.students.values()
                    ],
                )
                await connection.execute(
                    insert(s.tasks),
                    [
                        {
                            "run_id": run.run_id,
                            "position": position,
                            "task_id": task_id,
                            "payload": wire_task.task_with_quiz_to_wire(task).SerializeToString(),
                        }
                        for position, (task_id, task) in enumerate(run.tasks.items())
                    ],
                )
                first: Event = ("round_started", {"round": 1, "policy_version": run.policy_version})
                await self._append(connection, run.run_id, [started, first])
        except IntegrityError:
            existing = await self.content_hash(run.run_id)
            if existing is None:
                raise
            if existing != run.content_hash:
                raise AlreadyExists(f"run {run.run_id!r} exists with other content; choose another id") from None
            return False
        return True

    async def content_hash(self, run_id: str) -> str | None:
        """Hash of what a run was started with; None when there is no such run."""
        async with self.engine.connect() as connection:
            found = await connection.scalar(select(s.runs.c.content_hash).where(s.runs.c.run_id == run_id))
        return None if found is None else str(found)

    async def run_ids(self, state: RunState | None = None) -> list[str]:
        """Ids of runs, oldest first."""
        query = select(s.runs.c.run_id).order_by(s.runs.c.created_at, s.runs.c.run_id)
        if state is not None:
            query = query.where(s.runs.c.state == state.value)
        async with self.engine.connect() as connection:
            return [str(run_id) for run_id in await connection.scalars(query)]

    async def run(self, run_id: str) -> Run:
        """A run; NotFound when there is none by that id."""
        async with self.engine.connect() as connection:
            row = (await connection.execute(select(s.runs).where(s.runs.c.run_id == run_id))).mappings().first()
            if row is None:
                raise NotFound("run", run_id)
            tasks = await connection.scalars(
                select(s.tasks.c.payload).where(s.tasks.c.run_id == run_id).order_by(s.tasks.c.position)
            )
            students = await connection.execute(select(s.run_students).where(s.run_students.c.run_id == run_id))
        items = [
            wire_task.task_with_quiz_from_wire(orchestrator_service_pb2.TaskWithQuiz.FromString(each)) for each in tasks
        ]
        described = {
            each["student"]: RunStudent(
                each["student"],
                wire_description.student_description_from_wire(
                    student_service_pb2.StudentServiceDescribeResponse.FromString(each["description"])
                ),
                each["adapter_version"],
            )
            for each in students.mappings()
        }
        config = parse_settings(row["config_yaml"], RunConfig)
        return Run(
            run_id=run_id,
            config=config,
            config_yaml=row["config_yaml"],
            content_hash=row["content_hash"],
            tasks={item.task.id: item for item in items},
            retention_quiz=wire_task.quiz_from_wire(task_pb2.Quiz.FromString(row["retention_quiz"])),
            format=wire_policy.format_from_wire(policy_pb2.Format.FromString(row["format"])),
            teacher=wire_description.teacher_description_from_wire(
                teacher_pb.TeacherServiceDescribeResponse.FromString(row["teacher"])
            ),
            policy_version=row["policy_version"],
            students={name: described[name] for name in config.students},
            state=RunState(row["state"]),
            message=row["message"],
            created_at=to_datetime(row["created_at"]),
            finished_at=None if row["finished_at"] is None else to_datetime(row["finished_at"]),
        )

    async def end_run(self, run_id: str, state: RunState, message: str) -> bool:
        """Ends a running run, once; False when it had ended."""
        async with self.engine.begin() as connection:
            ended = await connection.execute(
                update(s.runs)
                .where(s.runs.c.run_id == run_id, s.runs.c.state == RunState.RUNNING.value)
                .values(state=state.value, message=message, finished_at=now_us())
            )
            if ended.rowcount:
                await self._append(connection, run_id, [(f"run_{state.value}", {"message": message})])
        return bool(ended.rowcount)

    async def add_group(self, run: Run, round_: int, task_id: str, written: Sequence[Candidate]) -> bool:
        """Stores all candidates of a task at once; False when they were there. Rejected ones get their reward here."""
        rows, earned, told = [], [], []
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
                    },
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
                    for student in run.config.students
                    for repeat in range(run.config.evaluation_seeds)
                ]
        try:
            async with self.engine.begin() as connection:
                await connection.execute(insert(s.candidates), rows)
                if earned:
                    await connection.execute(insert(s.rewards), earned)
                await self._append(connection, run.run_id, told)
        except IntegrityError:
            return False
        return True

    async def candidates(self, run_id: str) -> list[StoredCandidate]:
        """All candidates in order of round, task and index."""
        c = s.candidates.c
        query = select(s.candidates).where(c.run_id == run_id).order_by(c.round, c.task_id, c.index)
        async with self.engine.connect() as connection:
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
            made = await connection.execute(insert_or_ignore(connection, s.evaluations, row))
            if made.rowcount:
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

    async def note_attempt(self, run_id: str, evaluation_id: str, student: str, detail: Mapping[str, object]) -> None:
        """Counts a failed attempt that will be tried again."""
        c = s.evaluations.c
        where = (c.run_id == run_id, c.evaluation_id == evaluation_id, c.student == student, c.state == "pending")
        async with self.engine.begin() as connection:
            await connection.execute(update(s.evaluations).where(*where).values(attempts=c.attempts + 1))
            await self._append(connection, run_id, [("evaluation_retry", detail)])

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

    async def reward_rows(self, run_id: str) -> list[tuple[str, str, int, str]]:
        """(candidate, student, repeat, evaluation) of every reward given."""
        c = s.rewards.c
        query = select(c.candidate_id, c.student, c.repeat, c.evaluation_id).where(c.run_id == run_id)
        async with self.engine.connect() as connection:
            return [(row[0], row[1], row[2], row[3]) for row in await connection.execute(query)]

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

    async def add_update(self, run_id: str, round_: int, result: UpdateResult, events: Sequence[Event]) -> StoredUpdate:
        """Stores a round's update once; gives back what is stored."""
        row = {
            "run_id": run_id,
            "round": round_,
            "version": result.policy.version,
            "payload": wire_policy.update_result_to_wire(result).SerializeToString(),
        }
        async with self.engine.begin() as connection:
            made = await connection.execute(insert_or_ignore(connection, s.updates, row))
            if made.rowcount:
                await self._append(connection, run_id, events)
        return next(item for item in await self.updates(run_id) if item.round == round_)

    async def updates(self, run_id: str) -> list[StoredUpdate]:
        """Policy updates by round."""
        query = select(s.updates).where(s.updates.c.run_id == run_id).order_by(s.updates.c.round)
        async with self.engine.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            StoredUpdate(
                row["round"],
                row["version"],
                wire_policy.update_result_from_wire(teacher_pb.UpdateResult.FromString(row["payload"])),
            )
            for row in rows
        ]

    async def add_commit(self, run_id: str, row: Mapping[str, Any], detail: Mapping[str, object]) -> None:
        """Records a commit's decision once, and in the same transaction moves the student's version when committed.

        Conflict (and nothing written) when the student's version is no longer `parent_version`.
        """
        empty = {"quiz_before": QuizResult(), "quiz_after": QuizResult()}
        values = {"run_id": run_id, **empty, **row}
        for name in empty:
            values[name] = wire_evaluation.quiz_result_to_wire(values[name]).SerializeToString()
        async with self.engine.begin() as connection:
            made = await connection.execute(insert_or_ignore(connection, s.commits, values))
            if not made.rowcount:
                return
            if row["committed"]:
                await set_version(connection, row["student"], row["parent_version"], row["version"])
            kind = "committed" if row["committed"] else "not_committed"
            await self._append(connection, run_id, [(kind, detail)])

    async def commits(self, run_id: str) -> list[dict[str, Any]]:
        """The rows of decided commits, quizzes decoded."""
        c = s.commits.c
        query = select(s.commits).where(c.run_id == run_id).order_by(c.student, c.task_id)
        async with self.engine.connect() as connection:
            rows = [dict(row) for row in (await connection.execute(query)).mappings()]
        for row in rows:
            for name in ("quiz_before", "quiz_after"):
                row[name] = wire_evaluation.quiz_result_from_wire(evaluation_pb2.QuizResult.FromString(row[name]))
        return rows

    async def events(self, run_id: str, after: int = 0, limit: int | None = None) -> list[RunEvent]:
        """Events after a sequence number, in order."""
        c = s.events.c
        query = select(s.events).where(c.run_id == run_id, c.sequence > after).order_by(c.sequence)
        if limit is not None:
            query = query.limit(limit)
        async with self.engine.connect() as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            RunEvent(row["sequence"], to_datetime(row["at"]), row["kind"], json.loads(row["detail"])) for row in rows
        ]


def _state_of(outcome: EvaluationReport | Rejection | Failure) -> tuple[str, str]:
    match outcome:
        case Rejection():
            at = f" {outcome.field}={outcome.value} (allowed: {outcome.allowed})" if outcome.field else ""
            return "rejected", f"{outcome.reason.value}{at} {outcome.message}".strip()
        case Failure():
            return "failed", outcome.message
    return "report", ""


def _evaluation(row: Mapping[str, Any]) -> StoredEvaluation:
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
