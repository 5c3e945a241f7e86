"""A server on loopback whose answers need no model, for the tests of what lies between client and server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.rpc.example_service import KEY, QUESTION
from tutelage.domain.description import EvaluationPhase, EvaluationProgress
from tutelage.domain.evaluation import Answer, EvaluationKey
from tutelage.domain.task import Question
from tutelage.rpc.config import ServerSettings
from tutelage.rpc.server import serve
from tutelage.v1 import student_service_pb2 as pb
from tutelage.v1 import student_service_pb2_grpc as pb_grpc
from tutelage.wire.evaluation import answer_to_wire, evaluation_progress_to_wire


class Patient(pb_grpc.StudentServiceServicer):
    """Answers with the question, and begins evaluations that end only when they are cancelled."""

    name = "student"
    grpc_service_names: Sequence[str] = ("tutelage.v1.StudentService",)

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def Answer(self, request: Any, context: Any) -> Any:
        return pb.AnswerResponse(answers=[answer_to_wire(Answer(item.id, item.text, {})) for item in request.questions])

    async def Evaluate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        progress = EvaluationProgress(EvaluationPhase.TRAINING, 1, 2, 0.5)
        yield pb.EvaluateResponse(progress=evaluation_progress_to_wire(progress))
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    def register(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_StudentServiceServicer_to_server(self, server)

    async def start(self) -> None:
        pass

    async def ready(self) -> bool:
        return True

    async def stop(self) -> None:
        pass


Serving = Callable[..., AbstractAsyncContextManager[tuple[Patient, dict[str, Any]]]]


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    """Serves by the settings inside an `async with`, which is given the service and its ready file's content."""

    @asynccontextmanager
    async def running(**settings: Any) -> AsyncIterator[tuple[Patient, dict[str, Any]]]:
        # What it leaves out is answered with UNIMPLEMENTED; only the stubs call it abstract.
        service = Patient()  # type: ignore[abstract]
        stop, ready = asyncio.Event(), tmp_path / "ready.json"
        task = asyncio.create_task(serve(service, ServerSettings(ready_file=ready, grace_s=0, **settings), stop=stop))
        try:
            async with asyncio.timeout(15):
                while not ready.exists() and not task.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            if task.done():
                task.result()
            yield service, json.loads(ready.read_text())
        finally:
            stop.set()
            await task

    return running


@pytest.fixture
def question() -> Question:
    return QUESTION


@pytest.fixture
def key() -> EvaluationKey:
    return KEY
