"""A service on loopback that needs no model: it answers, waits, or fails as its test asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from tutelage.domain.description import EvaluationPhase, EvaluationProgress
from tutelage.domain.errors import (
    AlreadyExists,
    Conflict,
    DataLoss,
    Exhausted,
    FieldViolation,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    Unavailable,
)
from tutelage.domain.evaluation import Answer, EvaluationKey, InnerLoopSettings
from tutelage.domain.self_edit import Rejection, RejectionReason, SelfEdit, TextDocument
from tutelage.domain.task import Question, Quiz
from tutelage.rpc.config import ServerSettings
from tutelage.rpc.server import serve
from tutelage.v1 import student_service_pb2 as pb
from tutelage.v1 import student_service_pb2_grpc as pb_grpc
from tutelage.wire.evaluation import answer_to_wire, evaluation_outcome_to_wire, evaluation_progress_to_wire

NAME = "tutelage.v1.StudentService"
QUESTION = Question("1", "Who?", "Me")
KEY = EvaluationKey(
    "m", "r", "none", "", SelfEdit((TextDocument("text"),)), Quiz((QUESTION,)), Quiz(), ("exact",),
    InnerLoopSettings(), "e", 1,
)  # fmt: skip

FAULTS: dict[str, Exception] = {
    "invalid": InvalidInput([FieldViolation("a.b[0]", '7 | "x" é', "1 to 3"), FieldViolation("c", "", "text")]),
    "not_found": NotFound("evaluation", "not_found", "start it first"),
    "precondition": PreconditionFailed("the weights are gone"),
    "conflict": Conflict("v2 is current"),
    "exists": AlreadyExists("run x has other content"),
    "exhausted": Exhausted("the queue is full", retry_after_s=2.5),
    "unavailable": Unavailable("the model is restarting", retry_after_s=1.0),
    "data_loss": DataLoss("the adapter is truncated"),
    "bug": RuntimeError("secret at /home/someone/file.py"),
}


class Servicer(pb_grpc.StudentServiceServicer):
    """Answers without a model: faults by id, an evaluation that waits until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def GetEvaluation(self, request: Any, context: Any) -> Any:
        if request.evaluation_id == "aborted":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "own words")
        raise FAULTS[request.evaluation_id]

    async def Answer(self, request: Any, context: Any) -> Any:
        answers = [answer_to_wire(Answer(item.id, item.text, {"exact": 1.0})) for item in request.questions]
        return pb.AnswerResponse(answers=answers)

    async def Evaluate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        progress = EvaluationProgress(EvaluationPhase.TRAINING, 1, 2, 0.5)
        yield pb.EvaluateResponse(progress=evaluation_progress_to_wire(progress))
        if request.run_id == "fail":
            raise FAULTS["exhausted"]
        if request.run_id == "wait":
            try:
                await asyncio.sleep(60)
            finally:
                self.cancelled.set()
        rejected = Rejection(RejectionReason.EMPTY, message="nothing to learn")
        yield pb.EvaluateResponse(outcome=evaluation_outcome_to_wire(rejected))


class ExampleService:
    """A service whose start waits for `may_start`."""

    name = "student"
    grpc_service_names: Sequence[str] = (NAME,)

    def __init__(self) -> None:
        # What it leaves out is answered with UNIMPLEMENTED; only the stubs call it abstract.
        self.servicer = Servicer()  # type: ignore[abstract]
        self.may_start, self.starting = asyncio.Event(), asyncio.Event()
        self.may_start.set()
        self.stopped = False

    def register(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_StudentServiceServicer_to_server(self.servicer, server)

    async def start(self) -> None:
        self.starting.set()
        await self.may_start.wait()

    async def ready(self) -> bool:
        return True

    async def stop(self) -> None:
        self.stopped = True


async def _until(condition: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(tmp_path: Path, **settings: Any) -> AsyncIterator[tuple[ExampleService, dict[str, Any]]]:
    service, stop, ready = ExampleService(), asyncio.Event(), tmp_path / "ready.json"
    task = asyncio.create_task(
        serve(service, ServerSettings(ready_file=ready, grace_s=1, metrics_port=0, **settings), stop=stop)
    )
    try:
        await _until(lambda: ready.exists() or task.done())
        if task.done():
            task.result()
        yield service, json.loads(ready.read_text())
    finally:
        stop.set()
        await task
        assert service.stopped
        assert not ready.exists()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))
