"""A student and a teacher that answer over real gRPC, by rules a test can foresee."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc

from tutelage.domain.canonical import content_hash
from tutelage.domain.description import Adapter, StudentDescription, TeacherDescription, UpdateProgress
from tutelage.domain.errors import InvalidInput, NotFound, PreconditionFailed
from tutelage.domain.evaluation import Answer, Bounds, EvaluationReport, QuizResult, TrainingCost
from tutelage.domain.policy import Candidate, Format, Parser, Policy, UpdateResult
from tutelage.domain.self_edit import Rejection, RejectionReason, SelfEdit, TextDocument
from tutelage.rpc.interceptors import ErrorInterceptor
from tutelage.v1 import student_service_pb2 as student_pb
from tutelage.v1 import student_service_pb2_grpc as student_grpc
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.v1 import teacher_service_pb2_grpc as teacher_grpc
from tutelage.wire import description as wd
from tutelage.wire import evaluation as we
from tutelage.wire import policy as wp
from tutelage.wire.update_result import update_progress_to_wire, update_result_to_wire


def fraction(*parts: object) -> float:
    """A number of 0 to 1 that only the parts decide."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


class FakeStudent(student_grpc.StudentServiceServicer):
    """Scores an edit by a hash of its key; remembers what it was asked."""

    def __init__(self, slots: int = 2, delay_s: float = 0.0) -> None:
        self.slots, self.delay_s = slots, delay_s
        self.trained: list[str] = []
        self.keys: dict[str, Any] = {}
        self.reports: dict[str, EvaluationReport] = {}
        self.adapters: dict[str, Adapter] = {}
        self.cancelled: list[str] = []
        self.held: set[str] = set()
        self.running = self.most_running = 0
        self.luck = 0
        """Students of different luck score the same edit differently."""
        self.said = "text"
        """What it answers to every question."""
        self.outcome: Any = None
        """Given a key, what to answer in place of a report; None for the report."""
        self.server: grpc.aio.Server | None = None
        self.port = 0

    async def up(self) -> None:
        self.server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
        student_grpc.add_StudentServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def down(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def Describe(self, request: Any, context: Any) -> Any:
        return wd.student_description_to_wire(
            StudentDescription(
                base_model="fake",
                base_revision="r1",
                quantisation="none",
                device="cpu",
                compute_dtype="float32",
                parameters=1,
                slots=self.slots,
                free_slots=self.slots,
                queued=0,
                bounds=Bounds(),
                graders=("contains", "loglik"),
                engine_revision="e1",
                deterministic=True,
                context_length=512,
                version="0",
            )
        )

    async def Evaluate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        key = we.evaluation_key_from_wire(request.key)
        self.keys[key.id] = key
        if key.id not in self.reports:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            try:
                await asyncio.sleep(self.delay_s)
            finally:
                self.running -= 1
            other = self.outcome(key) if self.outcome else None
            if isinstance(other, BaseException):
                raise other
            if other is not None:
                yield student_pb.EvaluateResponse(evaluation_id=key.id, outcome=we.evaluation_outcome_to_wire(other))
                return
            self.trained.append(key.id)
            self.held.add(key.id)
            self.reports[key.id] = self.report(key)
        outcome = we.evaluation_outcome_to_wire(self.reports[key.id])
        yield student_pb.EvaluateResponse(evaluation_id=key.id, outcome=outcome)

    def report(self, key: Any) -> EvaluationReport:
        def answers(value: float, quiz: Any = key.quiz) -> QuizResult:
            scores = {"contains": value, "loglik": -1.0}
            return QuizResult.of(tuple(Answer(q.id, self.said, scores) for q in quiz.questions))

        return EvaluationReport(
            evaluation_id=key.id,
            before=answers(0.1),
            after=answers(0.1 + 0.8 * fraction(key.self_edit, key.seed, *[self.luck][: self.luck])),
            retention_before=answers(1.0, key.retention_quiz),
            retention_after=answers(1.0, key.retention_quiz),
            effective_settings=key.settings,
            cost=TrainingCost(steps=1, tokens=1, supervised_tokens=1),
            # Of all that it was given, the passage among it.
            answer_overlap=1.0,
            finished_at=datetime(2026, 1, 1, tzinfo=UTC),
        )

    async def CancelEvaluation(self, request: Any, context: Any) -> Any:
        self.cancelled.append(request.evaluation_id)
        return student_pb.CancelEvaluationResponse(cancelled=True)

    async def Commit(self, request: Any, context: Any) -> Any:
        key = self.keys.get(request.evaluation_id)
        if key is None:
            raise NotFound("evaluation", request.evaluation_id)
        if request.evaluation_id not in self.held:
            raise PreconditionFailed("its weights are no longer held")
        version = content_hash(["version", request.evaluation_id])
        adapter = Adapter(version, key.adapter_version, key.id, 4, 100, datetime(2026, 1, 1, tzinfo=UTC))
        self.adapters[version] = adapter
        quiz = we.quiz_result_to_wire(self.reports[key.id].after)
        return student_pb.CommitResponse(adapter=wd.adapter_to_wire(adapter), quiz=quiz)

    async def Answer(self, request: Any, context: Any) -> Any:
        if request.adapter_version and request.adapter_version not in self.adapters:
            raise NotFound("adapter", request.adapter_version)
        answers = [Answer(question.id, self.said, {}) for question in request.questions]
        return student_pb.AnswerResponse(answers=[we.answer_to_wire(each) for each in answers])

    async def ListAdapters(self, request: Any, context: Any) -> Any:
        return student_pb.ListAdaptersResponse(adapters=[wd.adapter_to_wire(each) for each in self.adapters.values()])


class FakeTeacher(teacher_grpc.TeacherServiceServicer):
    """Writes edits that task, policy and index decide; candidate 2 repeats candidate 1; candidate 3 is unparsable."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.prompts: list[str] = []
        self.requests: list[str] = []
        """All that was sent, as text."""
        self.updates: list[Any] = []
        self.progress: tuple[UpdateProgress, ...] = ()
        """Told before the result of each update."""
        self.logged: dict[str, Any] = {}
        """More fields of each update's result."""
        self.server: grpc.aio.Server | None = None
        self.port = 0

    async def up(self) -> None:
        self.server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=[("grpc.so_reuseport", 0)])
        teacher_grpc.add_TeacherServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def down(self) -> None:
        if self.server is not None:
            await self.server.stop(0)
            self.server = None

    async def Describe(self, request: Any, context: Any) -> Any:
        return wd.teacher_description_to_wire(
            TeacherDescription(
                base_model="fake",
                base_revision="r",
                quantisation="none",
                device="cpu",
                initial_policy_version="policy-0",
                latest_policy_version="policy-0",
                tokenizer_hash="t",
                context_length=512,
                formats=(Format("implications", "Write about {text}", Parser.LINES),),
                algorithms=("rest_em",),
                version="0",
            )
        )

    async def WriteSelfEdits(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.written.append(request.task.id)
        self.prompts.append(request.format.prompt)
        self.requests.append(str(request))
        for index in range(request.candidates):
            text = f"{request.task.id} by {request.policy_version} number {1 if index == 2 else index}"
            result: SelfEdit | Rejection = SelfEdit((TextDocument(text),))
            if index == 3:
                result = Rejection(RejectionReason.UNPARSABLE, message="no lines")
            candidate = Candidate(
                index, request.policy_version, request.format.name, text, result, f"rollout {text}".encode(), 5, index
            )
            yield teacher_pb.WriteSelfEditsResponse(candidate=wp.candidate_to_wire(candidate))

    async def CheckUpdate(self, request: Any, context: Any) -> Any:
        if "wrong" in request.settings.options:
            raise InvalidInput.of("settings.options.wrong", "1", "no such option")
        return teacher_pb.CheckUpdateResponse()

    async def UpdatePolicy(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        request = wp.update_request_from_wire([message async for message in request_iterator])
        self.updates.append(request)
        update_id = hashlib.sha256(repr(request).encode()).hexdigest()
        policy = Policy(
            f"policy-{request.round}-{update_id[:6]}",
            request.parent_version,
            request.run_id,
            request.round,
            request.algorithm,
            "d",
            update_id,
            datetime(2026, 1, 1, tzinfo=UTC),
        )
        each = [item for group in request.groups for item in group.candidates if item.reward is not None]
        best = {max(each, key=lambda item: item.reward or 0.0).candidate_id: 1.0} if each else {}
        result = UpdateResult(policy, update_id, True, len(best), 0.0, learnt=best, **self.logged)
        for progress in self.progress:
            yield teacher_pb.UpdatePolicyResponse(progress=update_progress_to_wire(progress))
        yield teacher_pb.UpdatePolicyResponse(result=update_result_to_wire(result))
