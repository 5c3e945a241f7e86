"""The orchestrator on the wire: each method translates, calls the engine and translates back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc

from orchestrator.adapt_quiz import make_quizzes
from orchestrator.config import OrchestratorSettings
from orchestrator.engine import Engine
from orchestrator.inboxes import Inboxes
from orchestrator.recomputing import recomputed_rewards
from orchestrator.report.comparison import compare
from orchestrator.report.comparison_html import render_comparison_html
from orchestrator.report.comparison_json import render_comparison_json
from orchestrator.report.csv_table import render_csv
from orchestrator.report.data import RunReport
from orchestrator.report.html import render_html
from orchestrator.report.json_report import json_parts
from orchestrator.report.metrics import metrics_lines
from orchestrator.report_builder import build_report
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.made_quiz import DEFAULT_CHECK, MadeQuiz, QuizCheck
from tutelage.domain.run import ReportFormat, TaskWithQuiz
from tutelage.domain.task import Quiz, Task
from tutelage.v1 import orchestrator_service_pb2 as pb
from tutelage.v1.orchestrator_service_pb2_grpc import (
    OrchestratorServiceServicer,
    add_OrchestratorServiceServicer_to_server,
)
from tutelage.wire.checks import Checks
from tutelage.wire.inbox import inbox_document_to_wire, inbox_to_wire
from tutelage.wire.made_quiz import made_quiz_to_wire, quiz_check_from_wire
from tutelage.wire.recomputed_reward import recomputed_reward_to_wire
from tutelage.wire.run import (
    logical_student_to_wire,
    report_format_from_wire,
    run_event_to_wire,
    run_plan_to_wire,
    run_summary_to_wire,
)
from tutelage.wire.task import (
    quiz_from_wire,
    quiz_to_wire,
    submission_from_wire,
    task_from_wire,
    task_with_quiz_from_wire,
)

MOST_QUESTIONS = 24
"""Of a quiz that is made."""
MOST_DOCUMENTS = 64
"""For which quizzes are made in one call."""
CHUNK = 256 * 1024
"""Bytes of a report in one message."""

RENDERERS: dict[ReportFormat, Callable[[RunReport], Iterable[str]]] = {
    ReportFormat.HTML: lambda report: (render_html(report),),
    ReportFormat.JSON: json_parts,
    ReportFormat.CSV: lambda report: (render_csv(report),),
    ReportFormat.METRICS: lambda report: (f"{line}\n" for line in metrics_lines(report)),
}
"""A report as text, a part at a time."""

COMPARISONS = {ReportFormat.HTML: render_comparison_html, ReportFormat.JSON: render_comparison_json}


async def _received(
    requests: AsyncIterator[pb.StartRunRequest] | AsyncIterator[pb.PlanRunRequest],
) -> tuple[str, str, list[TaskWithQuiz], Quiz, list[FieldViolation]]:
    """Id, settings, tasks and retention quiz of a run, and what is wrong with its tasks."""
    header: pb.RunHeader | None = None
    quiz = Quiz()
    tasks: list[TaskWithQuiz] = []
    wrong: list[FieldViolation] = []
    count = 0
    async for request in requests:
        part = request.WhichOneof("part")
        if (header is None) != (part == "header"):
            raise InvalidInput.of("part", part or "nothing", "one header, then tasks")
        try:
            if part == "header":
                header = request.header
                quiz = quiz_from_wire(header.retention_quiz, "retention_quiz")
            else:
                count += 1
                tasks.append(task_with_quiz_from_wire(request.task, f"tasks[{count - 1}]"))
        except InvalidInput as error:
            wrong += error.violations
    if header is None:
        raise InvalidInput.of("part", "nothing", "one header, then tasks")
    return header.run_id, header.config_yaml, tasks, quiz, wrong


def _piece(parts: Iterator[str]) -> bytes:
    """The next parts together, about a message's worth; empty at the end."""
    made = bytearray()
    for part in parts:
        made += part.encode()
        if len(made) >= CHUNK:
            break
    return bytes(made)


class OrchestratorService(OrchestratorServiceServicer):
    """Implements both the contract and what the server asks of a service."""

    name = "orchestrator"
    grpc_service_names: Sequence[str] = ("tutelage.v1.OrchestratorService",)

    def __init__(self, settings: OrchestratorSettings) -> None:
        self.engine = Engine(settings)
        self.inboxes = Inboxes(self.engine, settings.inboxes)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicer."""
        add_OrchestratorServiceServicer_to_server(self, server)

    async def start(self) -> None:
        """Opens the store, resumes runs and begins to work off the inboxes."""
        await self.engine.start()
        await self.inboxes.start()

    async def ready(self) -> bool:
        """Whether the store answers."""
        return await self.engine.ready()

    async def stop(self) -> None:
        """Stops driving runs."""
        await self.inboxes.stop()
        await self.engine.stop()

    async def StartRun(self, request_iterator: AsyncIterator[pb.StartRunRequest], context: Any) -> pb.StartRunResponse:
        asked = await _received(request_iterator)
        summary, created = await self.engine.start_run(*asked)
        return pb.StartRunResponse(run=run_summary_to_wire(summary), created=created)

    async def PlanRun(self, request_iterator: AsyncIterator[pb.PlanRunRequest], context: Any) -> pb.PlanRunResponse:
        return run_plan_to_wire(await self.engine.plan_run(*await _received(request_iterator)))

    async def WatchRun(self, request: pb.WatchRunRequest, context: Any) -> AsyncIterator[pb.WatchRunResponse]:
        async for summary, event in self.engine.watch(request.run_id, request.after_sequence):
            yield pb.WatchRunResponse(
                run=run_summary_to_wire(summary), event=None if event is None else run_event_to_wire(event)
            )

    async def GetRun(self, request: pb.GetRunRequest, context: Any) -> pb.GetRunResponse:
        summary = await self.engine.summary(request.run_id)
        config_yaml = await self.engine.config_yaml(request.run_id)
        resolved_yaml = await self.engine.resolved_yaml(request.run_id)
        return pb.GetRunResponse(run=run_summary_to_wire(summary), config_yaml=config_yaml, resolved_yaml=resolved_yaml)

    async def ListRuns(self, request: pb.ListRunsRequest, context: Any) -> pb.ListRunsResponse:
        return pb.ListRunsResponse(runs=[run_summary_to_wire(summary) for summary in await self.engine.list_runs()])

    async def CancelRun(self, request: pb.CancelRunRequest, context: Any) -> pb.CancelRunResponse:
        return pb.CancelRunResponse(run=run_summary_to_wire(await self.engine.cancel_run(request.run_id)))

    async def PauseRun(self, request: pb.PauseRunRequest, context: Any) -> pb.PauseRunResponse:
        return pb.PauseRunResponse(run=run_summary_to_wire(await self.engine.pause_run(request.run_id)))

    async def ResumeRun(self, request: pb.ResumeRunRequest, context: Any) -> pb.ResumeRunResponse:
        return pb.ResumeRunResponse(run=run_summary_to_wire(await self.engine.resume_run(request.run_id)))

    async def ExtendRun(self, request: pb.ExtendRunRequest, context: Any) -> pb.ExtendRunResponse:
        summary = await self.engine.extend_run(request.run_id, request.rounds)
        return pb.ExtendRunResponse(run=run_summary_to_wire(summary))

    async def CloneRun(self, request: pb.CloneRunRequest, context: Any) -> pb.CloneRunResponse:
        summary, created = await self.engine.clone_run(request.run_id, request.new_run_id, request.changes_yaml)
        return pb.CloneRunResponse(run=run_summary_to_wire(summary), created=created)

    async def GetReport(self, request: pb.GetReportRequest, context: Any) -> AsyncIterator[pb.GetReportResponse]:
        render = RENDERERS[report_format_from_wire(request.format, "format")]
        report = await self._report(request.run_id)
        # Plots of a long run take a while: not on the loop that drives runs.
        parts = await asyncio.to_thread(lambda: iter(render(report)))
        while piece := await asyncio.to_thread(_piece, parts):
            for start in range(0, len(piece), CHUNK):
                yield pb.GetReportResponse(chunk=piece[start : start + CHUNK])

    async def CompareRuns(self, request: pb.CompareRunsRequest, context: Any) -> AsyncIterator[pb.CompareRunsResponse]:
        wanted = report_format_from_wire(request.format, "format")
        if wanted not in COMPARISONS:
            raise InvalidInput.of("format", wanted.value, "html or json")
        first, other = await self._report(request.run_id), await self._report(request.other_run_id)
        content = await asyncio.to_thread(lambda: COMPARISONS[wanted](compare(first, other)).encode())
        for start in range(0, len(content), CHUNK):
            yield pb.CompareRunsResponse(chunk=content[start : start + CHUNK])

    async def RecomputeRewards(
        self, request: pb.RecomputeRewardsRequest, context: Any
    ) -> AsyncIterator[pb.RecomputeRewardsResponse]:
        run = await self.engine.store.run(request.run_id)
        for reward in await recomputed_rewards(self.engine.store, run, request.reward_yaml):
            yield recomputed_reward_to_wire(reward)

    async def _report(self, run_id: str) -> RunReport:
        run = await self.engine.store.run(run_id)
        return await build_report(self.engine.store, run, await self.engine.summary(run_id))

    async def ListStudents(self, request: pb.ListStudentsRequest, context: Any) -> pb.ListStudentsResponse:
        students = await self.engine.list_students()
        return pb.ListStudentsResponse(students=[logical_student_to_wire(student) for student in students])

    async def SetCurrentAdapter(
        self, request: pb.SetCurrentAdapterRequest, context: Any
    ) -> pb.SetCurrentAdapterResponse:
        student = await self.engine.set_current(request.student, request.expected_version, request.version)
        return pb.SetCurrentAdapterResponse(student=logical_student_to_wire(student))

    async def SubmitDocuments(
        self, request_iterator: AsyncIterator[pb.SubmitDocumentsRequest], context: Any
    ) -> pb.SubmitDocumentsResponse:
        inbox: str | None = None
        tasks: list[TaskWithQuiz] = []
        wrong: list[FieldViolation] = []
        count = 0
        async for request in request_iterator:
            part = request.WhichOneof("part")
            if (inbox is None) != (part == "inbox"):
                raise InvalidInput.of("part", part or "nothing", "one inbox, then documents")
            if part == "inbox":
                inbox = request.inbox
                continue
            try:
                tasks.append(submission_from_wire(request.document, f"tasks[{count}]"))
            except InvalidInput as error:
                wrong += error.violations
            count += 1
        if inbox is None:
            raise InvalidInput.of("part", "nothing", "one inbox, then documents")
        accepted, known = await self.inboxes.submit(inbox, tasks, wrong)
        return pb.SubmitDocumentsResponse(accepted=accepted, known=known)

    async def MakeQuiz(self, request: pb.MakeQuizRequest, context: Any) -> pb.MakeQuizResponse:
        task = task_from_wire(request.task, "task")
        (made,) = await self._made((task,), request.questions, request.seed, DEFAULT_CHECK)
        if made.refused:
            raise InvalidInput.of("task", task.id, made.refused)
        return pb.MakeQuizResponse(quiz=quiz_to_wire(made.quiz))

    async def MakeQuizzes(self, request: pb.MakeQuizzesRequest, context: Any) -> pb.MakeQuizzesResponse:
        if not 1 <= len(request.tasks) <= MOST_DOCUMENTS:
            raise InvalidInput.of("tasks", len(request.tasks), f"1 to {MOST_DOCUMENTS}")
        checks = Checks("")
        tasks = checks.passed(checks.each(task_from_wire, request.tasks, "tasks"))
        made = await self._made(tasks, request.questions, request.seed, quiz_check_from_wire(request.check))
        return pb.MakeQuizzesResponse(quizzes=[made_quiz_to_wire(each) for each in made])

    async def _made(self, tasks: Sequence[Task], questions: int, seed: int, check: QuizCheck) -> list[MadeQuiz]:
        if not 1 <= questions <= MOST_QUESTIONS:
            raise InvalidInput.of("questions", questions, f"1 to {MOST_QUESTIONS}")
        settings = self.engine.settings
        return await make_quizzes(
            self.engine.teacher,
            tasks,
            questions,
            seed,
            check,
            describe_timeout_s=settings.describe_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            retry=settings.retry,
        )

    async def ListInbox(self, request: pb.ListInboxRequest, context: Any) -> AsyncIterator[pb.ListInboxResponse]:
        if not request.inbox:
            for inbox in await self.inboxes.inboxes():
                yield pb.ListInboxResponse(inbox=inbox_to_wire(inbox))
            return
        yield pb.ListInboxResponse(inbox=inbox_to_wire(await self.inboxes.inbox(request.inbox)))
        for document in await self.inboxes.documents(request.inbox):
            yield pb.ListInboxResponse(document=inbox_document_to_wire(document))
