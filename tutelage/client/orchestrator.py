"""Clients of an orchestrator, asynchronous and blocking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable

from tutelage.client.connection import LONG_S, QUICK_S, WORK_S, AsyncConnection, SyncConnection
from tutelage.domain.inbox import Inbox, InboxDocument
from tutelage.domain.made_quiz import DEFAULT_CHECK, MadeQuiz, QuizCheck
from tutelage.domain.recomputed_reward import RecomputedReward
from tutelage.domain.run import LogicalStudent, ReportFormat, RunEvent, RunPlan, RunSummary, TaskWithQuiz
from tutelage.domain.task import Quiz, Task
from tutelage.rpc.config import ChannelSettings
from tutelage.v1 import orchestrator_service_pb2 as pb
from tutelage.v1.orchestrator_service_pb2_grpc import OrchestratorServiceStub
from tutelage.wire.checks import INT32_MAX, INT64_MAX, Checks, fitting
from tutelage.wire.inbox import listed_from_wire, submission_to_wire
from tutelage.wire.made_quiz import made_quizzes_from_wire, make_quizzes_to_wire
from tutelage.wire.recomputed_reward import recomputed_reward_from_wire
from tutelage.wire.run import (
    logical_student_from_wire,
    plan_run_to_wire,
    report_format_to_wire,
    run_event_from_wire,
    run_plan_from_wire,
    run_summary_from_wire,
    start_run_to_wire,
)


def _started(message: pb.StartRunResponse | pb.CloneRunResponse) -> tuple[RunSummary, bool]:
    return run_summary_from_wire(message.run), message.created


def _watched(message: pb.WatchRunResponse) -> tuple[RunSummary, RunEvent | None]:
    event = run_event_from_wire(message.event) if message.HasField("event") else None
    return run_summary_from_wire(message.run), event


def _got(message: pb.GetRunResponse) -> tuple[RunSummary, str]:
    return run_summary_from_wire(message.run), message.config_yaml


def _runs(message: pb.ListRunsResponse) -> tuple[RunSummary, ...]:
    checks = Checks("")
    return checks.passed(checks.each(run_summary_from_wire, message.runs, "runs"))


def _changed(
    message: pb.CancelRunResponse | pb.PauseRunResponse | pb.ResumeRunResponse | pb.ExtendRunResponse,
) -> RunSummary:
    return run_summary_from_wire(message.run)


def _resolved(message: pb.GetRunResponse) -> str:
    return message.resolved_yaml


def _clone(run_id: str, new_run_id: str, changes_yaml: str) -> pb.CloneRunRequest:
    return pb.CloneRunRequest(run_id=run_id, new_run_id=new_run_id, changes_yaml=changes_yaml)


def _extension(run_id: str, rounds: int) -> pb.ExtendRunRequest:
    return pb.ExtendRunRequest(run_id=run_id, rounds=fitting("rounds", rounds, INT32_MAX))


def _chunk(message: pb.GetReportResponse | pb.CompareRunsResponse) -> bytes:
    return message.chunk


def _students(message: pb.ListStudentsResponse) -> tuple[LogicalStudent, ...]:
    checks = Checks("")
    return checks.passed(checks.each(logical_student_from_wire, message.students, "students"))


def _student(message: pb.SetCurrentAdapterResponse) -> LogicalStudent:
    return logical_student_from_wire(message.student)


def _watch(run_id: str, after_sequence: int) -> pb.WatchRunRequest:
    return pb.WatchRunRequest(run_id=run_id, after_sequence=fitting("after_sequence", after_sequence, INT64_MAX))


def _submitted(message: pb.SubmitDocumentsResponse) -> tuple[int, int]:
    return message.accepted, message.known


class OrchestratorClient(AsyncConnection):
    """An orchestrator, asynchronously; every method raises the domain's errors."""

    def __init__(self, settings: ChannelSettings) -> None:
        super().__init__(settings)
        self._stub = OrchestratorServiceStub(self._channel)

    async def start_run(
        self,
        run_id: str,
        config_yaml: str,
        tasks: Iterable[TaskWithQuiz],
        retention_quiz: Quiz,
        *,
        timeout_s: float = WORK_S,
    ) -> tuple[RunSummary, bool]:
        """The run and whether it is new; the same id with the same content attaches."""
        messages = list(start_run_to_wire(run_id, config_yaml, tasks, retention_quiz))
        return await self._call(self._stub.StartRun, messages, _started, timeout_s)

    def watch_run(
        self, run_id: str, after_sequence: int = 0, *, timeout_s: float = LONG_S
    ) -> AsyncIterator[tuple[RunSummary, RunEvent | None]]:
        """The run with each event after a sequence number, until the run ends."""
        return self._stream(self._stub.WatchRun, _watch(run_id, after_sequence), _watched, timeout_s)

    async def get_run(self, run_id: str, *, timeout_s: float = QUICK_S) -> tuple[RunSummary, str]:
        """The run and its settings as YAML."""
        return await self._call(self._stub.GetRun, pb.GetRunRequest(run_id=run_id), _got, timeout_s)

    async def list_runs(self, *, timeout_s: float = QUICK_S) -> tuple[RunSummary, ...]:
        """All runs."""
        return await self._call(self._stub.ListRuns, pb.ListRunsRequest(), _runs, timeout_s)

    async def cancel_run(self, run_id: str, *, timeout_s: float = QUICK_S) -> RunSummary:
        """Ends a run."""
        return await self._call(self._stub.CancelRun, pb.CancelRunRequest(run_id=run_id), _changed, timeout_s)

    async def plan_run(
        self,
        run_id: str,
        config_yaml: str,
        tasks: Iterable[TaskWithQuiz],
        retention_quiz: Quiz,
        *,
        timeout_s: float = WORK_S,
    ) -> RunPlan:
        """What `start_run` would start; nothing is stored."""
        messages = list(plan_run_to_wire(run_id, config_yaml, tasks, retention_quiz))
        return await self._call(self._stub.PlanRun, messages, run_plan_from_wire, timeout_s)

    async def resolved_yaml(self, run_id: str, *, timeout_s: float = QUICK_S) -> str:
        """Every setting of a run with its default as it was when the run started."""
        return await self._call(self._stub.GetRun, pb.GetRunRequest(run_id=run_id), _resolved, timeout_s)

    async def pause_run(self, run_id: str, *, timeout_s: float = QUICK_S) -> RunSummary:
        """Begins nothing new in a run; what is under way ends."""
        return await self._call(self._stub.PauseRun, pb.PauseRunRequest(run_id=run_id), _changed, timeout_s)

    async def resume_run(self, run_id: str, *, timeout_s: float = QUICK_S) -> RunSummary:
        """Goes on with a paused run."""
        return await self._call(self._stub.ResumeRun, pb.ResumeRunRequest(run_id=run_id), _changed, timeout_s)

    async def extend_run(self, run_id: str, rounds: int, *, timeout_s: float = QUICK_S) -> RunSummary:
        """Adds rounds to a run, also to one that was done."""
        return await self._call(self._stub.ExtendRun, _extension(run_id, rounds), _changed, timeout_s)

    async def clone_run(
        self, run_id: str, new_run_id: str, changes_yaml: str = "", *, timeout_s: float = WORK_S
    ) -> tuple[RunSummary, bool]:
        """A run with the tasks of another and its settings, but for the changes; and whether it is new."""
        request = _clone(run_id, new_run_id, changes_yaml)
        return await self._call(self._stub.CloneRun, request, _started, timeout_s)

    async def get_report(self, run_id: str, format: ReportFormat, *, timeout_s: float = WORK_S) -> bytes:
        """The whole report."""
        request = pb.GetReportRequest(run_id=run_id, format=report_format_to_wire(format))
        return b"".join([chunk async for chunk in self._stream(self._stub.GetReport, request, _chunk, timeout_s)])

    async def compare_runs(
        self, run_id: str, other_run_id: str, format: ReportFormat, *, timeout_s: float = WORK_S
    ) -> bytes:
        """Two runs side by side, as HTML or JSON; differences are the other's less the first's."""
        request = pb.CompareRunsRequest(run_id=run_id, other_run_id=other_run_id, format=report_format_to_wire(format))
        return b"".join([chunk async for chunk in self._stream(self._stub.CompareRuns, request, _chunk, timeout_s)])

    async def recompute_rewards(
        self, run_id: str, reward_yaml: str, *, timeout_s: float = WORK_S
    ) -> list[RecomputedReward]:
        """A run's candidates under other settings of the reward, given as YAML; no student is asked."""
        request = pb.RecomputeRewardsRequest(run_id=run_id, reward_yaml=reward_yaml)
        stream = self._stream(self._stub.RecomputeRewards, request, recomputed_reward_from_wire, timeout_s)
        return [reward async for reward in stream]

    async def list_students(self, *, timeout_s: float = QUICK_S) -> tuple[LogicalStudent, ...]:
        """The logical students and their current versions."""
        return await self._call(self._stub.ListStudents, pb.ListStudentsRequest(), _students, timeout_s)

    async def set_current_adapter(
        self, student: str, expected_version: str, version: str, *, timeout_s: float = QUICK_S
    ) -> LogicalStudent:
        """Compare-and-set of a student's version; Conflict when another is current."""
        request = pb.SetCurrentAdapterRequest(student=student, expected_version=expected_version, version=version)
        return await self._call(self._stub.SetCurrentAdapter, request, _student, timeout_s)

    async def submit_documents(
        self, inbox: str, tasks: Iterable[TaskWithQuiz], *, timeout_s: float = WORK_S
    ) -> tuple[int, int]:
        """How many documents the inbox took, and how many it had before with the same content."""
        messages = list(submission_to_wire(inbox, tasks))
        return await self._call(self._stub.SubmitDocuments, messages, _submitted, timeout_s)

    async def make_quizzes(
        self,
        tasks: Iterable[Task],
        questions: int,
        *,
        seed: int = 0,
        check: QuizCheck = DEFAULT_CHECK,
        timeout_s: float = LONG_S,
    ) -> tuple[MadeQuiz, ...]:
        """At most so many questions for each document, by the teacher's first policy; the same seed gives the same.

        For 1 to 64 documents, in their order; their questions are checked together.
        """
        request = make_quizzes_to_wire(tasks, questions, seed, check)
        return await self._call(self._stub.MakeQuizzes, request, made_quizzes_from_wire, timeout_s)

    async def list_inbox(self, inbox: str = "", *, timeout_s: float = WORK_S) -> list[Inbox | InboxDocument]:
        """All inboxes; or one, and its documents in the order they came."""
        request = pb.ListInboxRequest(inbox=inbox)
        return [item async for item in self._stream(self._stub.ListInbox, request, listed_from_wire, timeout_s)]


class SyncOrchestratorClient(SyncConnection):
    """An orchestrator, blocking; the methods of `OrchestratorClient`."""

    def __init__(self, settings: ChannelSettings) -> None:
        super().__init__(settings)
        self._stub = OrchestratorServiceStub(self._channel)

    def start_run(
        self,
        run_id: str,
        config_yaml: str,
        tasks: Iterable[TaskWithQuiz],
        retention_quiz: Quiz,
        *,
        timeout_s: float = WORK_S,
    ) -> tuple[RunSummary, bool]:
        """The run and whether it is new; the same id with the same content attaches."""
        messages = iter(list(start_run_to_wire(run_id, config_yaml, tasks, retention_quiz)))
        return self._call(self._stub.StartRun, messages, _started, timeout_s)

    def watch_run(
        self, run_id: str, after_sequence: int = 0, *, timeout_s: float = LONG_S
    ) -> Generator[tuple[RunSummary, RunEvent | None], None, None]:
        """The run with each event after a sequence number, until the run ends."""
        return self._stream(self._stub.WatchRun, _watch(run_id, after_sequence), _watched, timeout_s)

    def get_run(self, run_id: str, *, timeout_s: float = QUICK_S) -> tuple[RunSummary, str]:
        """The run and its settings as YAML."""
        return self._call(self._stub.GetRun, pb.GetRunRequest(run_id=run_id), _got, timeout_s)

    def list_runs(self, *, timeout_s: float = QUICK_S) -> tuple[RunSummary, ...]:
        """All runs."""
        return self._call(self._stub.ListRuns, pb.ListRunsRequest(), _runs, timeout_s)

    def cancel_run(self, run_id: str, *, timeout_s: float = QUICK_S) -> RunSummary:
        """Ends a run."""
        return self._call(self._stub.CancelRun, pb.CancelRunRequest(run_id=run_id), _changed, timeout_s)

    def plan_run(
        self,
        run_id: str,
        config_yaml: str,
        tasks: Iterable[TaskWithQuiz],
        retention_quiz: Quiz,
        *,
        timeout_s: float = WORK_S,
    ) -> RunPlan:
        """What `start_run` would start; nothing is stored."""
        messages = iter(plan_run_to_wire(run_id, config_yaml, tasks, retention_quiz))
        return self._call(self._stub.PlanRun, messages, run_plan_from_wire, timeout_s)

    def resolved_yaml(self, run_id: str, *, timeout_s: float = QUICK_S) -> str:
        """Every setting of a run with its default as it was when the run started."""
        return self._call(self._stub.GetRun, pb.GetRunRequest(run_id=run_id), _resolved, timeout_s)

    def pause_run(self, run_id: str, *, timeout_s: float = QUICK_S) -> RunSummary:
        """Begins nothing new in a run; what is under way ends."""
        return self._call(self._stub.PauseRun, pb.PauseRunRequest(run_id=run_id), _changed, timeout_s)

    def resume_run(self, run_id: str, *, timeout_s: float = QUICK_S) -> RunSummary:
        """Goes on with a paused run."""
        return self._call(self._stub.ResumeRun, pb.ResumeRunRequest(run_id=run_id), _changed, timeout_s)

    def extend_run(self, run_id: str, rounds: int, *, timeout_s: float = QUICK_S) -> RunSummary:
        """Adds rounds to a run, also to one that was done."""
        return self._call(self._stub.ExtendRun, _extension(run_id, rounds), _changed, timeout_s)

    def clone_run(
        self, run_id: str, new_run_id: str, changes_yaml: str = "", *, timeout_s: float = WORK_S
    ) -> tuple[RunSummary, bool]:
        """A run with the tasks of another and its settings, but for the changes; and whether it is new."""
        request = _clone(run_id, new_run_id, changes_yaml)
        return self._call(self._stub.CloneRun, request, _started, timeout_s)

    def get_report(self, run_id: str, format: ReportFormat, *, timeout_s: float = WORK_S) -> bytes:
        """The whole report."""
        request = pb.GetReportRequest(run_id=run_id, format=report_format_to_wire(format))
        return b"".join(self._stream(self._stub.GetReport, request, _chunk, timeout_s))

    def compare_runs(self, run_id: str, other_run_id: str, format: ReportFormat, *, timeout_s: float = WORK_S) -> bytes:
        """Two runs side by side, as HTML or JSON; differences are the other's less the first's."""
        request = pb.CompareRunsRequest(run_id=run_id, other_run_id=other_run_id, format=report_format_to_wire(format))
        return b"".join(self._stream(self._stub.CompareRuns, request, _chunk, timeout_s))

    def recompute_rewards(self, run_id: str, reward_yaml: str, *, timeout_s: float = WORK_S) -> list[RecomputedReward]:
        """A run's candidates under other settings of the reward, given as YAML; no student is asked."""
        request = pb.RecomputeRewardsRequest(run_id=run_id, reward_yaml=reward_yaml)
        return list(self._stream(self._stub.RecomputeRewards, request, recomputed_reward_from_wire, timeout_s))

    def list_students(self, *, timeout_s: float = QUICK_S) -> tuple[LogicalStudent, ...]:
        """The logical students and their current versions."""
        return self._call(self._stub.ListStudents, pb.ListStudentsRequest(), _students, timeout_s)

    def set_current_adapter(
        self, student: str, expected_version: str, version: str, *, timeout_s: float = QUICK_S
    ) -> LogicalStudent:
        """Compare-and-set of a student's version; Conflict when another is current."""
        request = pb.SetCurrentAdapterRequest(student=student, expected_version=expected_version, version=version)
        return self._call(self._stub.SetCurrentAdapter, request, _student, timeout_s)

    def submit_documents(
        self, inbox: str, tasks: Iterable[TaskWithQuiz], *, timeout_s: float = WORK_S
    ) -> tuple[int, int]:
        """How many documents the inbox took, and how many it had before with the same content."""
        messages = iter(list(submission_to_wire(inbox, tasks)))
        return self._call(self._stub.SubmitDocuments, messages, _submitted, timeout_s)

    def make_quizzes(
        self,
        tasks: Iterable[Task],
        questions: int,
        *,
        seed: int = 0,
        check: QuizCheck = DEFAULT_CHECK,
        timeout_s: float = LONG_S,
    ) -> tuple[MadeQuiz, ...]:
        """At most so many questions for each document, by the teacher's first policy; the same seed gives the same.

        For 1 to 64 documents, in their order; their questions are checked together.
        """
        request = make_quizzes_to_wire(tasks, questions, seed, check)
        return self._call(self._stub.MakeQuizzes, request, made_quizzes_from_wire, timeout_s)

    def list_inbox(self, inbox: str = "", *, timeout_s: float = WORK_S) -> list[Inbox | InboxDocument]:
        """All inboxes; or one, and its documents in the order they came."""
        return list(self._stream(self._stub.ListInbox, pb.ListInboxRequest(inbox=inbox), listed_from_wire, timeout_s))
