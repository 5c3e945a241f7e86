"""Runs: stored with everything they need before anything is begun, ended once."""

from __future__ import annotations

import json
from dataclasses import replace

import yaml
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from orchestrator import schema as s
from orchestrator.database import now_us, to_datetime
from orchestrator.records import Run, RunStudent
from orchestrator.rows import Event, Rows, uninterrupted
from orchestrator.run_config import RunConfig
from tutelage.domain.errors import AlreadyExists, NotFound, PreconditionFailed
from tutelage.domain.run import RunState
from tutelage.settings import parse_settings
from tutelage.v1 import orchestrator_service_pb2, policy_pb2, student_service_pb2, task_pb2
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.wire import description as wire_description
from tutelage.wire import policy as wire_policy
from tutelage.wire import task as wire_task


def _check_asked(run_id: str) -> None:
    """NotFound for an id that PostgreSQL would not even look for."""
    if "\0" in run_id:
        raise NotFound("run", run_id)


def resolved_yaml(config: RunConfig) -> str:
    """Every setting with its default filled in, as YAML."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


class RunRows(Rows):
    """Reads and writes of runs."""

    @uninterrupted
    async def create_run(self, run: Run) -> bool:
        """Stores a new run; False when the same is there. AlreadyExists when the id has other content.

        PreconditionFailed when it is of an inbox's batch that was taken back.
        """
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
            "resolved_yaml": resolved_yaml(run.config),
        }
        started: Event = (
            "run_started",
            {
                "tasks": len(run.tasks),
                "students": list(run.config.students),
                "rounds": run.plan.rounds,
                "candidates": run.config.candidates,
                "evaluations": run.plan.evaluations,
                "policy_version": run.policy_version,
                "adapter_versions": {name: student.adapter_version for name, student in run.students.items()},
            },
        )
        try:
            async with self.engine.begin() as connection:
                await connection.execute(insert(s.runs), row)
                await self._batch_is_open(connection, run.run_id)
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

    async def _batch_is_open(self, connection: AsyncConnection, run_id: str) -> None:
        # Locked until the end, so that an inbox cannot take its documents back meanwhile.
        c = s.inbox_batches.c
        query = select(c.spent).where(c.run_id == run_id).with_for_update(read=True)
        batch = (await connection.execute(query)).first()
        if batch is not None and batch.spent is not None:
            raise PreconditionFailed(f"run {run_id!r} is of an inbox's batch whose documents were taken back")

    @uninterrupted
    async def content_hash(self, run_id: str) -> str | None:
        """Hash of what a run was started with; None when there is no such run."""
        async with self.reading.connect() as connection:
            found = await connection.scalar(select(s.runs.c.content_hash).where(s.runs.c.run_id == run_id))
        return None if found is None else str(found)

    @uninterrupted
    async def run_ids(self, state: RunState | None = None) -> list[str]:
        """Ids of runs, oldest first."""
        query = select(s.runs.c.run_id).order_by(s.runs.c.created_at, s.runs.c.run_id)
        if state is not None:
            query = query.where(s.runs.c.state == state.value)
        async with self.reading.connect() as connection:
            return [str(run_id) for run_id in await connection.scalars(query)]

    @uninterrupted
    async def run(self, run_id: str) -> Run:
        """A run; NotFound when there is none by that id."""
        _check_asked(run_id)
        async with self.reading.connect() as connection:
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
        # As they were resolved at the start: a default that changes must not change a run.
        config = parse_settings(row["resolved_yaml"] or row["config_yaml"], RunConfig)
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
            extra_rounds=row["extra_rounds"],
        )

    @uninterrupted
    async def run_state(self, run_id: str) -> tuple[RunState, str]:
        """A run's state and message; NotFound when there is none by that id."""
        _check_asked(run_id)
        c = s.runs.c
        async with self.reading.connect() as connection:
            row = (await connection.execute(select(c.state, c.message).where(c.run_id == run_id))).first()
        if row is None:
            raise NotFound("run", run_id)
        return RunState(row.state), row.message

    @uninterrupted
    async def refreshed(self, run: Run) -> Run:
        """The run with what may have changed since it was read; the rest is not read again."""
        c = s.runs.c
        query = select(c.state, c.message, c.finished_at, c.extra_rounds).where(c.run_id == run.run_id)
        async with self.reading.connect() as connection:
            row = (await connection.execute(query)).one()
        return replace(
            run,
            state=RunState(row.state),
            message=row.message,
            finished_at=None if row.finished_at is None else to_datetime(row.finished_at),
            extra_rounds=row.extra_rounds,
        )

    @uninterrupted
    async def count_states(self) -> dict[RunState, int]:
        """Runs by state."""
        c = s.runs.c
        async with self.reading.connect() as connection:
            rows = await connection.execute(select(c.state, func.count()).group_by(c.state))
            return {RunState(row[0]): row[1] for row in rows}

    @uninterrupted
    async def end_run(self, run_id: str, state: RunState, message: str) -> bool:
        """Ends a run that has not ended, once; False when it had. A paused one can only be cancelled."""
        c = s.runs.c
        open_ = [RunState.RUNNING.value] + ([RunState.PAUSED.value] if state is RunState.CANCELLED else [])
        async with self.engine.begin() as connection:
            await self._locked(connection, run_id)
            ended = await connection.execute(
                update(s.runs)
                .where(c.run_id == run_id, c.state.in_(open_))
                .values(state=state.value, message=message, finished_at=now_us())
            )
            if ended.rowcount:
                await self._append_locked(connection, run_id, [(f"run_{state.value}", {"message": message})])
        return bool(ended.rowcount)

    @uninterrupted
    async def change_state(self, run_id: str, old: RunState, new: RunState, event: str) -> bool:
        """From one state to another; False when the run is in neither the old nor is changed."""
        c = s.runs.c
        async with self.engine.begin() as connection:
            await self._locked(connection, run_id)
            changed = await connection.execute(
                update(s.runs).where(c.run_id == run_id, c.state == old.value).values(state=new.value, message="")
            )
            if changed.rowcount:
                await self._append_locked(connection, run_id, [(event, {})])
        return bool(changed.rowcount)

    @uninterrupted
    async def reopen(self, run_id: str) -> bool:
        """Lets a failed run go on; False when it has not failed. PreconditionFailed for one of an inbox."""
        c = s.runs.c
        async with self.engine.begin() as connection:
            await self._locked(connection, run_id)
            batches = s.inbox_batches.c
            if await connection.scalar(select(batches.inbox).where(batches.run_id == run_id)) is not None:
                # Its documents went back to the inbox: a student would learn them twice.
                raise PreconditionFailed(f"run {run_id!r} failed: its inbox begins its documents anew")
            changed = await connection.execute(
                update(s.runs)
                .where(c.run_id == run_id, c.state == RunState.FAILED.value)
                .values(state=RunState.RUNNING.value, message="", finished_at=None)
            )
            if changed.rowcount:
                await self._append_locked(connection, run_id, [("run_resumed", {})])
        return bool(changed.rowcount)

    @uninterrupted
    async def tell(self, run_id: str, message: str) -> None:
        """What a run waits for, for people; an event when it changed."""
        c = s.runs.c
        async with self.engine.begin() as connection:
            await self._locked(connection, run_id)
            changed = await connection.execute(
                update(s.runs)
                .where(c.run_id == run_id, c.state == RunState.RUNNING.value, c.message != message)
                .values(message=message)
            )
            if changed.rowcount and message:
                await self._append_locked(connection, run_id, [("run_waits", {"message": message})])

    async def _told(self, connection: AsyncConnection, run_id: str, event: Event) -> bool:
        c = s.events.c
        kind, detail = event
        found = await connection.scalars(select(c.detail).where(c.run_id == run_id, c.kind == kind))
        return any(json.loads(each) == detail for each in found)

    @uninterrupted
    async def extend(self, run_id: str, rounds: int) -> None:
        """Adds rounds to a run that has not failed or been cancelled; one that was done goes on.

        Whoever drives it loses its lease, and takes it up again with the new plan. Commits that were decided against
        are decided again after the last round; what was committed stays.
        """
        c = s.runs.c
        async with self.engine.begin() as connection:
            await self._locked(connection, run_id)
            row = (await connection.execute(select(c.state, c.extra_rounds).where(c.run_id == run_id))).one()
            going = row.state != RunState.DONE.value
            await connection.execute(
                update(s.runs)
                .where(c.run_id == run_id)
                .values(
                    extra_rounds=c.extra_rounds + rounds,
                    state=row.state if going else RunState.RUNNING.value,
                    message="",
                    finished_at=None,
                    owner="",
                    leased_until=0,
                    epoch=c.epoch + 1,
                )
            )
            await connection.execute(
                delete(s.commits).where(s.commits.c.run_id == run_id, s.commits.c.committed.is_(False))
            )
            told: list[Event] = [("run_extended", {"rounds": rounds})]
            last = (
                await connection.execute(
                    select(s.updates.c.round, s.updates.c.version)
                    .where(s.updates.c.run_id == run_id)
                    .order_by(s.updates.c.round.desc())
                    .limit(1)
                )
            ).first()
            if last is not None:
                first = ("round_started", {"round": last.round + 1, "policy_version": last.version})
                # While rounds are under way the next one has begun already.
                if not await self._told(connection, run_id, first):
                    told.append(first)
            await self._append_locked(connection, run_id, told)
