"""Runs, their events and the students of an orchestrator on the wire."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator

from tutelage.domain.run import (
    LogicalStudent,
    ReportFormat,
    RunEvent,
    RunPhase,
    RunPlan,
    RunState,
    RunSummary,
    StudentReplica,
    StudentResult,
    TaskWithQuiz,
)
from tutelage.domain.task import Quiz
from tutelage.v1 import orchestrator_service_pb2 as pb
from tutelage.wire.checks import INT64_MAX, Checks, fitting, reverse, timestamp
from tutelage.wire.task import quiz_to_wire, task_with_quiz_to_wire

_STATES: dict[int, RunState] = {
    pb.RUN_STATE_RUNNING: RunState.RUNNING,
    pb.RUN_STATE_DONE: RunState.DONE,
    pb.RUN_STATE_FAILED: RunState.FAILED,
    pb.RUN_STATE_CANCELLED: RunState.CANCELLED,
    pb.RUN_STATE_PAUSED: RunState.PAUSED,
}
_STATE_VALUES = reverse(_STATES)
_PHASES: dict[int, RunPhase] = {
    pb.RUN_PHASE_WRITING: RunPhase.WRITING,
    pb.RUN_PHASE_EVALUATING: RunPhase.EVALUATING,
    pb.RUN_PHASE_UPDATING: RunPhase.UPDATING,
    pb.RUN_PHASE_COMMITTING: RunPhase.COMMITTING,
    pb.RUN_PHASE_ENDED: RunPhase.ENDED,
}
_PHASE_VALUES = reverse(_PHASES)
_FORMATS: dict[int, ReportFormat] = {
    pb.REPORT_FORMAT_HTML: ReportFormat.HTML,
    pb.REPORT_FORMAT_JSON: ReportFormat.JSON,
    pb.REPORT_FORMAT_METRICS: ReportFormat.METRICS,
    pb.REPORT_FORMAT_CSV: ReportFormat.CSV,
}
_FORMAT_VALUES = reverse(_FORMATS)


def start_run_to_wire(
    run_id: str, config_yaml: str, tasks: Iterable[TaskWithQuiz], retention_quiz: Quiz
) -> Iterator[pb.StartRunRequest]:
    """One header, then a message a task."""
    header = pb.RunHeader(run_id=run_id, config_yaml=config_yaml, retention_quiz=quiz_to_wire(retention_quiz))
    yield pb.StartRunRequest(header=header)
    for task in tasks:
        yield pb.StartRunRequest(task=task_with_quiz_to_wire(task))


def run_summary_to_wire(run: RunSummary) -> pb.RunSummary:
    """The summary as a message."""
    message = pb.RunSummary(
        run_id=run.run_id,
        round=run.round,
        rounds=run.rounds,
        evaluations_done=run.evaluations_done,
        evaluations_total=run.evaluations_total,
        mean_reward=run.mean_reward,
        seconds_left=run.seconds_left,
        policy_version=run.policy_version,
        message=run.message,
        created_at=timestamp(run.created_at),
        finished_at=None if run.finished_at is None else timestamp(run.finished_at),
        unscored=run.unscored,
        rejected=run.rejected,
        students=[_student_result_to_wire(student) for student in run.students],
        teacher_busy=run.teacher_busy,
    )
    message.state = _STATE_VALUES[run.state]  # type: ignore[assignment]
    message.phase = _PHASE_VALUES[run.phase]  # type: ignore[assignment]
    return message


def run_summary_from_wire(message: pb.RunSummary, field: str = "run") -> RunSummary:
    """A summary with an id, a state, a phase and the time it was created."""
    checks = Checks(field)
    return checks.passed(
        RunSummary(
            run_id=checks.text("run_id", message.run_id),
            state=checks.enum("state", message.state, _STATES),
            phase=checks.enum("phase", message.phase, _PHASES),
            round=checks.count("round", message.round),
            rounds=checks.count("rounds", message.rounds),
            evaluations_done=checks.count("evaluations_done", message.evaluations_done),
            evaluations_total=checks.count("evaluations_total", message.evaluations_total),
            mean_reward=checks.finite("mean_reward", message.mean_reward) if message.HasField("mean_reward") else None,
            seconds_left=checks.at_least_zero("seconds_left", message.seconds_left)
            if message.HasField("seconds_left")
            else None,
            policy_version=message.policy_version,
            message=message.message,
            created_at=checks.time(message, "created_at"),
            finished_at=checks.optional_time(message, "finished_at"),
            unscored=checks.count("unscored", message.unscored),
            rejected=checks.count("rejected", message.rejected),
            students=checks.each(_student_result_from_wire, message.students, "students"),
            teacher_busy=checks.at_least_zero("teacher_busy", message.teacher_busy)
            if message.HasField("teacher_busy")
            else None,
        )
    )


def _student_result_to_wire(student: StudentResult) -> pb.StudentResult:
    return pb.StudentResult(
        name=student.name,
        evaluations_done=student.evaluations_done,
        mean_reward=student.mean_reward,
        busy=student.busy,
    )


def _student_result_from_wire(message: pb.StudentResult, field: str = "student") -> StudentResult:
    checks = Checks(field)
    return checks.passed(
        StudentResult(
            name=checks.text("name", message.name),
            evaluations_done=checks.count("evaluations_done", message.evaluations_done),
            mean_reward=checks.finite("mean_reward", message.mean_reward) if message.HasField("mean_reward") else None,
            busy=checks.at_least_zero("busy", message.busy) if message.HasField("busy") else None,
        )
    )


def run_plan_to_wire(plan: RunPlan) -> pb.PlanRunResponse:
    """The plan as a message."""
    return pb.PlanRunResponse(
        resolved_yaml=plan.resolved_yaml,
        groups=plan.groups,
        evaluations=plan.evaluations,
        updates=plan.updates,
        seconds=plan.seconds,
    )


def run_plan_from_wire(message: pb.PlanRunResponse) -> RunPlan:
    """A plan with its counts."""
    checks = Checks("")
    return checks.passed(
        RunPlan(
            resolved_yaml=message.resolved_yaml,
            groups=checks.count("groups", message.groups),
            evaluations=checks.count("evaluations", message.evaluations),
            updates=checks.count("updates", message.updates),
            seconds=checks.at_least_zero("seconds", message.seconds) if message.HasField("seconds") else None,
        )
    )


def plan_run_to_wire(
    run_id: str, config_yaml: str, tasks: Iterable[TaskWithQuiz], retention_quiz: Quiz
) -> Iterator[pb.PlanRunRequest]:
    """The same parts as those of a start."""
    for request in start_run_to_wire(run_id, config_yaml, tasks, retention_quiz):
        part = request.WhichOneof("part")
        yield pb.PlanRunRequest(header=request.header) if part == "header" else pb.PlanRunRequest(task=request.task)


def run_event_to_wire(event: RunEvent) -> pb.RunEvent:
    """The event as a message; ValueError when its detail holds NaN or is not JSON."""
    return pb.RunEvent(
        sequence=fitting("event.sequence", event.sequence, INT64_MAX),
        at=timestamp(event.at),
        kind=event.kind,
        detail_json=json.dumps(event.detail, sort_keys=True, allow_nan=False),
    )


def run_event_from_wire(message: pb.RunEvent, field: str = "event") -> RunEvent:
    """An event with a kind, a time and a JSON object as its detail (empty text means none)."""
    checks = Checks(field)
    detail: object = None
    with contextlib.suppress(ValueError, RecursionError):
        detail = json.loads(message.detail_json or "{}")
    if not isinstance(detail, dict):
        checks.wrong("detail_json", message.detail_json, "a JSON object")
        detail = {}
    return checks.passed(
        RunEvent(message.sequence, checks.time(message, "at"), checks.text("kind", message.kind), detail)
    )


def logical_student_to_wire(student: LogicalStudent) -> pb.LogicalStudent:
    """The student's entry as a message."""
    return pb.LogicalStudent(
        name=student.name,
        address=student.address,
        base_model=student.base_model,
        current_adapter_version=student.current_adapter_version,
        changed_at=None if student.changed_at is None else timestamp(student.changed_at),
        previous_adapter_versions=student.previous_adapter_versions,
        reachable=student.reachable,
        left_adapter_versions=student.left_adapter_versions,
        replicas=[pb.StudentReplica(address=each.address, server_name=each.server_name) for each in student.replicas],
    )


def _replica_from_wire(message: pb.StudentReplica, field: str) -> StudentReplica:
    checks = Checks(field)
    return checks.passed(StudentReplica(checks.text("address", message.address), message.server_name))


def logical_student_from_wire(message: pb.LogicalStudent, field: str = "student") -> LogicalStudent:
    """An entry with a name."""
    checks = Checks(field)
    return checks.passed(
        LogicalStudent(
            name=checks.text("name", message.name),
            address=message.address,
            base_model=message.base_model,
            current_adapter_version=message.current_adapter_version,
            changed_at=checks.optional_time(message, "changed_at"),
            previous_adapter_versions=tuple(message.previous_adapter_versions),
            reachable=message.reachable,
            left_adapter_versions=tuple(message.left_adapter_versions),
            replicas=checks.each(_replica_from_wire, message.replicas, "replicas"),
        )
    )


def report_format_to_wire(item: ReportFormat) -> pb.ReportFormat.ValueType:
    """The wire's value of a report's format."""
    return _FORMAT_VALUES[item]  # type: ignore[return-value]


def report_format_from_wire(value: int, field: str = "format") -> ReportFormat:
    """A known format."""
    checks = Checks(field)
    return checks.passed(checks.enum("", value, _FORMATS))
