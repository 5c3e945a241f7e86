"""All runs of an orchestrator: started, resumed, watched, cancelled; and the students' current versions."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

from orchestrator import metrics
from orchestrator.config import OrchestratorSettings
from orchestrator.database import database_url
from orchestrator.dispatch import seconds_left
from orchestrator.machine import phase
from orchestrator.records import Run, RunStudent
from orchestrator.run_config import RunConfig, resolve_format, service_violations, task_violations
from orchestrator.runner import Runner, rebuild, run_hash
from orchestrator.store import Store
from orchestrator.student_rows import StudentRows
from orchestrator.students import Students
from orchestrator.teaching import first_policy
from tutelage.client import TeacherClient
from tutelage.domain.description import StudentDescription
from tutelage.domain.errors import AlreadyExists, FieldViolation, InvalidInput, NotFound, Unavailable
from tutelage.domain.run import LogicalStudent, RunEvent, RunPhase, RunState, RunSummary, TaskWithQuiz
from tutelage.domain.task import Quiz
from tutelage.settings import parse_settings

logger = logging.getLogger(__name__)

RUN_ID = re.compile(r"[a-z0-9_-]{1,64}")
POLL_S = 0.2
"""Seconds between two looks at the events of a watched run."""
SUMMARY_S = 5.0
"""Seconds after which a watcher gets a summary even when nothing happened."""


class Engine:
    """Everything behind the service, without gRPC."""

    def __init__(self, settings: OrchestratorSettings) -> None:
        self.settings = settings
        self._runners: dict[str, tuple[Runner, asyncio.Task[None]]] = {}

    async def start(self) -> None:
        """Opens the store and resumes every unfinished run."""
        self.store = await Store.open(database_url(self.settings))
        self.rows = StudentRows(self.store.engine)
        self.students = Students(self.settings.students, self.settings.describe_timeout_s)
        self.teacher = TeacherClient(self.settings.teacher)
        metrics.initialise(self.settings.students)
        for run_id in await self.store.run_ids(RunState.RUNNING):
            run = await self.store.run(run_id)
            missing = [name for name in run.config.students if name not in self.settings.students]
            if missing:
                logger.error("run %s waits: students %s are not configured", run_id, ", ".join(missing))
                continue
            await self.store.append(run_id, ("run_resumed", {}))
            self._drive(run)
        await self._count_runs()

    async def stop(self) -> None:
        """Stops driving; runs go on at the next start. Students go on for their leases."""
        tasks = [task for _, task in self._runners.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.students.close()
        await self.teacher.close()
        await self.store.close()

    async def ready(self) -> bool:
        """Whether the database answers."""
        await self.store.run_ids(RunState.RUNNING)
        return True

    def _drive(self, run: Run) -> None:
        runner = Runner(run, self.store, self.students, self.teacher, self.settings)

        async def drive() -> None:
            try:
                await runner.drive()
            except Exception:
                # The database is out of reach: the run's rows stand, and the next start resumes it.
                logger.exception("run %s is no longer driven", run.run_id)
            finally:
                self._runners.pop(run.run_id, None)
            await self._count_runs()

        self._runners[run.run_id] = (runner, asyncio.create_task(drive()))

    async def _count_runs(self) -> None:
        for state in RunState:
            metrics.RUNS.labels(state.value).set(len(await self.store.run_ids(state)))

    async def start_run(
        self,
        run_id: str,
        config_yaml: str,
        tasks: Sequence[TaskWithQuiz],
        retention_quiz: Quiz,
        wrong: Sequence[FieldViolation] = (),
    ) -> tuple[RunSummary, bool]:
        """The run and whether it is new. InvalidInput names all that is wrong, before any work is begun.

        `wrong` is what was found in the tasks before; they were left out of `tasks`.
        """
        digest = run_hash(config_yaml, list(tasks), retention_quiz)
        existing = await self.store.content_hash(run_id)
        if existing is not None and existing != digest:
            raise AlreadyExists(f"run {run_id!r} exists with other content; choose another id")
        if existing is None or wrong:
            found = [*wrong] or task_violations(tasks, retention_quiz)
            run = await self._checked(run_id, config_yaml, tasks, retention_quiz, digest, found)
            created = await self.store.create_run(run)
            if created:
                self._drive(run)
                await self._count_runs()
        else:
            created = False
        return await self.summary(run_id), created

    async def _checked(
        self,
        run_id: str,
        config_yaml: str,
        tasks: Sequence[TaskWithQuiz],
        retention_quiz: Quiz,
        digest: str,
        found: Sequence[FieldViolation],
    ) -> Run:
        wrong = [*found]
        if not RUN_ID.fullmatch(run_id):
            wrong.append(FieldViolation("run_id", run_id, "1 to 64 characters of a-z, 0-9, '-', '_'"))
        config: RunConfig | None = None
        try:
            config = parse_settings(config_yaml, RunConfig)
        except InvalidInput as error:
            wrong += [FieldViolation(f"config.{each.field}", each.value, each.allowed) for each in error.violations]
        if config is None:
            raise InvalidInput(wrong)
        known = ", ".join(self.settings.students)
        wrong += [
            FieldViolation(f"config.students[{index}]", name, f"one of this orchestrator's students: {known}")
            for index, name in enumerate(config.students)
            if name not in self.settings.students
        ]
        wrong += [
            FieldViolation(f"config.{name}", str(getattr(config, name)), "nothing: the client reads files itself")
            for name in ("documents", "retention_quiz", "limit")
            if getattr(config, name) is not None
        ]
        try:
            teacher = await self.teacher.describe(timeout_s=self.settings.describe_timeout_s)
            policy = await first_policy(config.policy, teacher, self.teacher)
            described = await self._described([name for name in config.students if name in self.settings.students])
        except Unavailable as error:
            # What is wrong with the input is told first: it will not get better by waiting.
            if wrong:
                raise InvalidInput(wrong) from None
            raise Unavailable(f"the run cannot start: {error}", error.retry_after_s) from None
        if not policy:
            allowed = "`initial`, `latest`, `promoted` or a version that the teacher keeps"
            wrong.append(FieldViolation("config.policy", config.policy, allowed))
        wrong += service_violations(config, teacher, described)
        if config.update.algorithm in teacher.algorithms:
            wrong += await self._update_violations(config)
        if wrong:
            raise InvalidInput(wrong)
        versions = {name: (await self.rows.current(name)).version for name in described}
        return Run(
            run_id=run_id,
            config=config,
            config_yaml=config_yaml,
            content_hash=digest,
            tasks={item.task.id: item for item in tasks},
            retention_quiz=retention_quiz,
            format=resolve_format(config, teacher),
            teacher=teacher,
            policy_version=policy,
            students={name: RunStudent(name, described[name], versions[name]) for name in described},
            state=RunState.RUNNING,
            message="",
            created_at=datetime.now(UTC),
            finished_at=None,
        )

    async def _update_violations(self, config: RunConfig) -> list[FieldViolation]:
        """What the teacher would refuse once a round is paid for: the algorithm's settings, or the sampling."""
        try:
            await self.teacher.check_update(
                config.update.algorithm, config.update_settings(), config.sampling_settings()
            )
        except InvalidInput as error:
            return [
                FieldViolation("config." + re.sub(r"^settings\b", "update", item.field), item.value, item.allowed)
                for item in error.violations
            ]
        return []

    async def _described(self, names: Sequence[str]) -> dict[str, StudentDescription]:
        found = await asyncio.gather(*(self.students.describe(name) for name in names), return_exceptions=True)
        faults = [item for item in found if isinstance(item, BaseException)]
        others = [item for item in faults if not isinstance(item, Unavailable)]
        if others:
            raise others[0]
        if faults:
            raise Unavailable("; ".join(str(item) for item in faults))
        return {name: item for name, item in zip(names, found, strict=True) if isinstance(item, StudentDescription)}

    async def summary(self, run_id: str) -> RunSummary:
        """A run as its watchers see it; NotFound when there is none."""
        run = await self.store.run(run_id)
        tally = await self.store.tally(run_id)
        driven = self._runners.get(run_id)
        now = driven[0].progress if driven else await rebuild(run, self.store)
        plan = run.plan
        total = plan.evaluations
        each = total // len(plan.students)
        remaining = {name: each - tally.done_by_student.get(name, 0) for name in plan.students}
        running = run.state is RunState.RUNNING
        return RunSummary(
            run_id=run_id,
            state=run.state,
            phase=phase(plan, now) if running else RunPhase.ENDED,
            round=min(now.round, plan.rounds),
            rounds=plan.rounds,
            evaluations_done=tally.done,
            evaluations_total=total,
            mean_reward=tally.mean_reward,
            seconds_left=seconds_left(tally.mean_seconds, remaining, self.students.slots) if running else None,
            policy_version=now.policy_version,
            message=run.message,
            created_at=run.created_at,
            finished_at=run.finished_at,
            unscored=tally.unscored,
            rejected=tally.rejected,
        )

    async def list_runs(self) -> list[RunSummary]:
        """All runs, oldest first."""
        return [await self.summary(run_id) for run_id in await self.store.run_ids()]

    async def config_yaml(self, run_id: str) -> str:
        """The settings a run was started with."""
        return (await self.store.run(run_id)).config_yaml

    async def watch(self, run_id: str, after: int) -> AsyncIterator[tuple[RunSummary, RunEvent | None]]:
        """Events after a sequence number and new ones as they come, each with the summary; ends with the run."""
        summary = await self.summary(run_id)
        yield summary, None
        quiet_s = 0.0
        while True:
            # Read before the events: an end that is seen here has all its events in the store.
            ended = (await self.store.run(run_id)).state is not RunState.RUNNING
            events = await self.store.events(run_id, after, limit=500)
            if events:
                summary = await self.summary(run_id)
                quiet_s = 0.0
            for event in events:
                after = event.sequence
                yield summary, event
            if events:
                continue
            if ended:
                yield await self.summary(run_id), None
                return
            await asyncio.sleep(POLL_S)
            quiet_s += POLL_S
            if quiet_s >= SUMMARY_S:
                quiet_s = 0.0
                yield await self.summary(run_id), None

    async def cancel_run(self, run_id: str) -> RunSummary:
        """Ends a running run and stops its evaluations; a run that has ended stays as it is."""
        await self.store.run(run_id)
        cancelled = await self.store.end_run(run_id, RunState.CANCELLED, "cancelled")
        driven = self._runners.get(run_id)
        if cancelled and driven is not None:
            runner, task = driven
            await runner.cancel_evaluations()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._runners.pop(run_id, None)
        await self._count_runs()
        return await self.summary(run_id)

    async def list_students(self) -> list[LogicalStudent]:
        """The configured students, their current versions, and who answers now."""
        described = await self.students.describe_all()
        return [await self._logical(name, description) for name, description in described.items()]

    async def _logical(self, name: str, description: StudentDescription | None) -> LogicalStudent:
        current = await self.rows.current(name)
        return LogicalStudent(
            name=name,
            address=self.settings.students[name].address,
            base_model=description.base_model if description else "",
            current_adapter_version=current.version,
            changed_at=current.changed_at,
            previous_adapter_versions=current.previous,
            reachable=description is not None,
        )

    async def set_current(self, student: str, expected: str, version: str) -> LogicalStudent:
        """Compare-and-set of the current version; Conflict when another is current, NotFound for an unknown one."""
        client = self.students.client(student)
        if version:
            known = {adapter.version for adapter in await client.list_adapters()}
            if version not in known:
                raise NotFound("adapter version", version, f"student {student!r} keeps {len(known)} versions")
        await self.rows.compare_and_set(student, expected, version)
        described = await self.students.describe_all({student: None})
        return await self._logical(student, described[student])
