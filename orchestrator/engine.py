"""All runs of an orchestrator: started, watched, paused, extended, cancelled; and the students' current versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, get_origin

import yaml
from pydantic.fields import FieldInfo

from orchestrator import metrics
from orchestrator.addresses import Resolver, resolve_host
from orchestrator.config import OrchestratorSettings
from orchestrator.database import database_url
from orchestrator.dispatcher import Dispatcher
from orchestrator.driving import Driving
from orchestrator.estimate import run_seconds
from orchestrator.judging import Judges
from orchestrator.run_checking import RunChecking
from orchestrator.run_config import RunConfig
from orchestrator.run_rows import resolved_yaml
from orchestrator.store import Store
from orchestrator.student_rows import StudentRows
from orchestrator.students import Students
from orchestrator.summarising import summarise
from orchestrator.verdict_rows import VerdictRows
from tutelage.client import TeacherClient
from tutelage.domain.canonical import content_hash
from tutelage.domain.description import StudentDescription
from tutelage.domain.errors import (
    AlreadyExists,
    FieldViolation,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    TutelageError,
)
from tutelage.domain.run import LogicalStudent, RunEvent, RunPlan, RunState, RunSummary, TaskWithQuiz
from tutelage.domain.task import Quiz
from tutelage.yaml_mapping import parse_mapping

POLL_S = 0.2
"""Seconds between two looks at the events of a watched run."""
SUMMARY_S = 5.0
"""Seconds after which a watcher gets a summary even when nothing happened."""
MOST_ROUNDS = 1000


class Engine:
    """Everything behind the service, without gRPC."""

    def __init__(self, settings: OrchestratorSettings, resolve: Resolver = resolve_host) -> None:
        self.settings = settings
        self._resolve = resolve
        # Closes what was opened, the latest first, also where the start broke on the way.
        self._opened = AsyncExitStack()

    async def start(self) -> None:
        """Opens the store and takes up every run that nobody drives."""
        self.store = await Store.open(database_url(self.settings))
        self._opened.push_async_callback(self.store.close)
        self.rows = StudentRows(self.store.engine)
        self.students = Students(self.settings.students, self.settings.describe_timeout_s, self._resolve)
        self.teacher = TeacherClient(self.settings.teacher)
        self._opened.push_async_callback(self.teacher.close)
        self._opened.push_async_callback(self.students.close)
        self.dispatcher = Dispatcher(self.students, self.settings)
        self._opened.push_async_callback(self.dispatcher.close)
        self._checking = RunChecking(self.settings, self.teacher, self.students, self.rows)
        self.judges = Judges(self.settings.judges, VerdictRows(self.store.engine))
        await self.judges.start()
        self._opened.push_async_callback(self.judges.close)
        self._driving = Driving(self.store, self.dispatcher, self.teacher, self.settings, self._count_runs, self.judges)
        self._opened.push_async_callback(self._driving.stop)
        metrics.initialise(self.settings.students)
        await self.dispatcher.start()
        await self._driving.start()
        await self._count_runs()

    async def stop(self) -> None:
        """Stops driving: runs go on at the next start, or with another orchestrator; students for their leases."""
        await self._opened.aclose()

    async def ready(self) -> bool:
        """Whether the database answers."""
        await self.store.run_ids(RunState.RUNNING)
        return True

    async def _count_runs(self) -> None:
        counts = await self.store.count_states()
        for state in RunState:
            metrics.RUNS.labels(state.value).set(counts.get(state, 0))

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
        # What tells a run's content from another's.
        digest = content_hash([config_yaml, list(tasks), retention_quiz])
        existing = await self.store.content_hash(run_id)
        if existing is not None and existing != digest:
            raise AlreadyExists(f"run {run_id!r} exists with other content; choose another id")
        if existing is None or wrong:
            run = await self._checking.checked(run_id, config_yaml, tasks, retention_quiz, digest, wrong)
            created = await self.store.create_run(run)
            if created:
                await self._driving.take(run_id)
                await self._count_runs()
        else:
            created = False
        return await self.summary(run_id), created

    async def plan_run(
        self,
        run_id: str,
        config_yaml: str,
        tasks: Sequence[TaskWithQuiz],
        retention_quiz: Quiz,
        wrong: Sequence[FieldViolation] = (),
    ) -> RunPlan:
        """What `start_run` would start: checked in the same way, and nothing is stored."""
        run = await self._checking.checked(run_id, config_yaml, tasks, retention_quiz, "", wrong)
        plan = run.plan
        groups = plan.rounds * len(plan.tasks) * len(plan.audiences)
        slots = {name: student.description.slots for name, student in run.students.items()}
        evaluation_s = await self.store.evaluation_seconds(plan.students)
        seconds = run_seconds(plan, slots, evaluation_s, await self.store.teacher_seconds())
        updates = 0 if run.config.update.when == "never" else plan.rounds
        return RunPlan(resolved_yaml(run.config), groups, plan.evaluations, updates, seconds)

    async def clone_run(self, run_id: str, new_id: str, changes_yaml: str) -> tuple[RunSummary, bool]:
        """A new run with the tasks of another and its settings as they were resolved, but for the changes."""
        run = await self.store.run(run_id)
        changes = parse_mapping(changes_yaml, "changes")
        settings = {name: value for name, value in run.config.model_dump(mode="json").items() if value is not None}
        merged = yaml.safe_dump(_merged(settings, changes, RunConfig.model_fields), sort_keys=False)
        return await self.start_run(new_id, merged, list(run.tasks.values()), run.retention_quiz)

    async def summary(self, run_id: str) -> RunSummary:
        """A run as its watchers see it; NotFound when there is none."""
        runner = self._driving.runner(run_id)
        run = await self.store.run(run_id) if runner is None else await self.store.refreshed(runner.run)
        return await summarise(run, self.store, runner, self.dispatcher)

    async def list_runs(self) -> list[RunSummary]:
        """All runs, oldest first."""
        return [await self.summary(run_id) for run_id in await self.store.run_ids()]

    async def config_yaml(self, run_id: str) -> str:
        """The settings a run was started with."""
        return (await self.store.run(run_id)).config_yaml

    async def resolved_yaml(self, run_id: str) -> str:
        """Every setting of a run with its default as it was then."""
        return resolved_yaml((await self.store.run(run_id)).config)

    async def watch(self, run_id: str, after: int) -> AsyncIterator[tuple[RunSummary, RunEvent | None]]:
        """Events after a sequence number and new ones as they come, each with the summary; ends with the run."""
        summary = await self.summary(run_id)
        yield summary, None
        quiet_s = 0.0
        while True:
            # Read before the events: an end that is seen here has all its events in the store.
            ended = (await self.store.run_state(run_id))[0].ended
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
        """Ends a run and stops its evaluations; a run that has ended stays as it is."""
        await self.store.run_state(run_id)
        cancelled = await self.store.end_run(run_id, RunState.CANCELLED, "cancelled")
        runner = self._driving.runner(run_id)
        if cancelled and runner is not None:
            await runner.cancel_evaluations()
            await self._driving.leave(run_id)
        await self._count_runs()
        return await self.summary(run_id)

    async def pause_run(self, run_id: str) -> RunSummary:
        """Begins nothing new in a running run; what is under way ends. PreconditionFailed when the run has ended."""
        state, _ = await self.store.run_state(run_id)
        if state.ended:
            raise PreconditionFailed(f"run {run_id!r} is {state.value}: only a running run can be paused")
        await self.store.change_state(run_id, RunState.RUNNING, RunState.PAUSED, "run_paused")
        runner = self._driving.runner(run_id)
        if runner is not None:
            runner.pause()
        await self._count_runs()
        return await self.summary(run_id)

    async def resume_run(self, run_id: str) -> RunSummary:
        """Goes on with a run that is paused or has failed. PreconditionFailed when it was done or cancelled."""
        state, _ = await self.store.run_state(run_id)
        if state in (RunState.DONE, RunState.CANCELLED):
            raise PreconditionFailed(f"run {run_id!r} is {state.value}: only a paused or failed run can be resumed")
        if state is RunState.FAILED:
            await self.store.reopen(run_id)
        await self.store.change_state(run_id, RunState.PAUSED, RunState.RUNNING, "run_resumed")
        # One that is still ending what was under way is taken up when it has.
        await self._driving.take(run_id)
        await self._count_runs()
        return await self.summary(run_id)

    async def extend_run(self, run_id: str, rounds: int) -> RunSummary:
        """Adds rounds, also to a run that was done. PreconditionFailed when it failed or was cancelled."""
        run = await self.store.run(run_id)
        most = MOST_ROUNDS - run.plan.rounds
        if not 1 <= rounds <= most:
            raise InvalidInput.of("rounds", rounds, f"1 to {most}")
        if run.state in (RunState.FAILED, RunState.CANCELLED):
            can = "resumed or cloned" if run.state is RunState.FAILED else "cloned"
            raise PreconditionFailed(f"run {run_id!r} is {run.state.value}: it can be {can}, not extended")
        await self.store.extend(run_id, rounds)
        await self._driving.leave(run_id)
        await self._driving.take(run_id)
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
            address=self.students.address_text(name),
            base_model=description.base_model if description else "",
            current_adapter_version=current.version,
            changed_at=current.changed_at,
            previous_adapter_versions=current.previous,
            left_adapter_versions=current.left,
            replicas=self.students.replicas(name),
            reachable=description is not None,
        )

    async def set_current(self, student: str, expected: str, version: str) -> LogicalStudent:
        """Compare-and-set of the current version; Conflict when another is current, NotFound for an unknown one."""
        kept: set[str] = set()
        fault: TutelageError | None = None
        for client in await self.students.clients(student) if version else ():
            try:
                kept |= {adapter.version for adapter in await client.list_adapters()}
            except TutelageError as error:
                # Also of one that refuses its caller: another replica may keep it.
                fault = error
        if version and version not in kept:
            raise fault or NotFound("adapter version", version, f"student {student!r} keeps {len(kept)} versions")
        await self.students.addresses(student)
        await self.rows.compare_and_set(student, expected, version)
        described = await self.students.describe_all({student: None})
        return await self._logical(student, described[student])


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any], known: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The settings with the changes put in, setting by setting.

    A mapping with keys of the user's own, such as weights by grader, is one setting: a weight left out is none.
    """
    merged = dict(settings)
    for name, value in changes.items():
        old, kind = merged.get(name), known[name].annotation if name in known else None
        if isinstance(old, Mapping) and isinstance(value, Mapping) and get_origin(kind) is not dict:
            value = _merged(old, value, getattr(kind, "model_fields", {}))
        merged[name] = value
    return merged
