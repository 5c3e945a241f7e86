"""`StudentService` on the wire: message to domain, one call of the engine on a thread, domain to message.

Threads are few: what waits for the worker (`Answer`, `Commit`) holds none, so that all else is answered meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from student.config import StudentSettings
from student.engine import StudentEngine
from student.evaluation_check import check_evaluations
from student.metrics import StudentMetrics
from student.scheduler import Job
from tutelage.domain.description import EvaluationProgress
from tutelage.domain.errors import Unavailable
from tutelage.domain.evaluation import EvaluationOutcome
from tutelage.models.loading import load_model
from tutelage.rpc.logging import bind
from tutelage.v1 import student_service_pb2 as pb
from tutelage.v1 import student_service_pb2_grpc as pb_grpc
from tutelage.wire.description import adapter_to_wire, student_description_to_wire
from tutelage.wire.evaluation import (
    answer_to_wire,
    evaluation_key_from_wire,
    evaluation_outcome_to_wire,
    evaluation_progress_to_wire,
    evaluation_status_to_wire,
    quiz_result_to_wire,
)
from tutelage.wire.task import question_from_wire

log = logging.getLogger(__name__)
Context = grpc.aio.ServicerContext[Any, Any]


def load_engine(settings: StudentSettings, metrics: StudentMetrics) -> StudentEngine:
    """Loads the base model; takes seconds to minutes."""
    if settings.deterministic:
        use_deterministic_kernels()
    loaded = load_model(
        settings.model,
        quantisation=settings.quantisation,
        device=settings.device,
        compute_dtype=settings.compute_dtype,
        threads=settings.threads,
        cache_dir=settings.cache_dir,
        dequantise=settings.dequantise,
    )
    return StudentEngine(loaded, settings, metrics)


def use_deterministic_kernels() -> None:
    """Has torch take kernels that give the same sum each time, and warn where it has none."""
    import os

    import torch

    # cuBLAS reads it when its first handle is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


class StudentServicer(pb_grpc.StudentServiceServicer):
    """Few lines a method; what can go wrong is raised as a domain error and mapped by the server."""

    def __init__(self) -> None:
        self.engine_or_none: StudentEngine | None = None

    @property
    def _engine(self) -> StudentEngine:
        if self.engine_or_none is None:
            raise Unavailable("the student is loading its model", retry_after_s=5)
        return self.engine_or_none

    async def Describe(self, request: pb.StudentServiceDescribeRequest, context: Context) -> Any:
        return student_description_to_wire(self._engine.describe())

    async def CheckEvaluations(
        self, request_iterator: AsyncIterator[pb.CheckEvaluationsRequest], context: Context
    ) -> pb.CheckEvaluationsResponse:
        return await check_evaluations(request_iterator, self._engine)

    async def Evaluate(self, request: pb.EvaluateRequest, context: Context) -> AsyncIterator[pb.EvaluateResponse]:
        engine = self._engine
        # A large one takes seconds to read and to hash, which no other call waits for.
        key = await asyncio.to_thread(evaluation_key_from_wire, request.key)
        bind(evaluation_id=await asyncio.to_thread(lambda: key.id), run_id=request.run_id)
        events: asyncio.Queue[EvaluationProgress | EvaluationOutcome] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def watcher(event: EvaluationProgress | EvaluationOutcome) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        starting = asyncio.create_task(
            asyncio.to_thread(engine.evaluate, key, lease_s=request.lease_s, watcher=watcher)
        )
        try:
            job: Job = await asyncio.shield(starting)
            while True:
                event = await events.get()
                # A slow reader gets the newest progress, not all of them.
                while isinstance(event, EvaluationProgress) and not events.empty():
                    event = events.get_nowait()
                if isinstance(event, EvaluationProgress):
                    yield pb.EvaluateResponse(evaluation_id=job.id, progress=evaluation_progress_to_wire(event))
                    continue
                yield pb.EvaluateResponse(evaluation_id=job.id, outcome=evaluation_outcome_to_wire(event))
                return
        finally:
            # The stream may have been lost while the job was still being made.
            starting.add_done_callback(
                lambda task: None if task.cancelled() or task.exception() else engine.detach(task.result(), watcher)
            )

    async def GetEvaluation(self, request: pb.GetEvaluationRequest, context: Context) -> Any:
        return evaluation_status_to_wire(await asyncio.to_thread(self._engine.get_evaluation, request.evaluation_id))

    async def CancelEvaluation(self, request: pb.CancelEvaluationRequest, context: Context) -> Any:
        cancelled = await asyncio.to_thread(self._engine.cancel_evaluation, request.evaluation_id)
        return pb.CancelEvaluationResponse(cancelled=cancelled)

    async def Commit(self, request: pb.CommitRequest, context: Context) -> Any:
        waiting = await asyncio.to_thread(self._engine.begin_commit, request.evaluation_id)
        # A caller that left has asked for it all the same: what is kept is there when it comes back.
        adapter, quiz, retention = await asyncio.shield(asyncio.wrap_future(waiting))
        return pb.CommitResponse(
            adapter=adapter_to_wire(adapter), quiz=quiz_result_to_wire(quiz), retention=quiz_result_to_wire(retention)
        )

    async def Answer(self, request: pb.AnswerRequest, context: Context) -> Any:
        questions = [question_from_wire(item, f"questions[{i}]") for i, item in enumerate(request.questions)]
        stop = threading.Event()
        try:
            waiting = await asyncio.to_thread(
                self._engine.begin_answer,
                questions,
                adapter_version=request.adapter_version,
                max_new_tokens=request.max_new_tokens,
                stop=stop,
            )
            answers = await asyncio.wrap_future(waiting)
        finally:
            # A caller that left no longer needs the rest of its answers.
            stop.set()
        return pb.AnswerResponse(answers=[answer_to_wire(answer) for answer in answers])

    async def ListAdapters(self, request: pb.ListAdaptersRequest, context: Context) -> Any:
        adapters = await asyncio.to_thread(self._engine.list_adapters)
        return pb.ListAdaptersResponse(adapters=[adapter_to_wire(adapter) for adapter in adapters])

    async def DeleteAdapter(self, request: pb.DeleteAdapterRequest, context: Context) -> Any:
        await asyncio.to_thread(self._engine.delete_adapter, request.version)
        return pb.DeleteAdapterResponse()


class Student:
    """The student as a `tutelage.rpc.server.Service`."""

    name = "student"
    grpc_service_names: Sequence[str] = ("tutelage.v1.StudentService",)

    def __init__(self, settings: StudentSettings, metrics: StudentMetrics | None = None) -> None:
        self._settings = settings
        self._metrics = metrics or StudentMetrics()
        self._servicer = StudentServicer()

    def register(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_StudentServiceServicer_to_server(self._servicer, server)

    async def start(self) -> None:
        self._servicer.engine_or_none = await asyncio.to_thread(load_engine, self._settings, self._metrics)

    async def ready(self) -> bool:
        engine = self._servicer.engine_or_none
        return engine is not None and await asyncio.to_thread(engine.healthy)

    async def stop(self) -> None:
        engine, self._servicer.engine_or_none = self._servicer.engine_or_none, None
        if engine is not None:
            await asyncio.to_thread(engine.close)
