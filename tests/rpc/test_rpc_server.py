"""A real server on loopback: health, limits, errors, tokens, metrics and cancellation, seen from real clients."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tutelage.client import StudentClient, SyncStudentClient
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
    TutelageError,
    Unavailable,
)
from tutelage.domain.evaluation import Answer, EvaluationKey, InnerLoopSettings
from tutelage.domain.self_edit import Rejection, RejectionReason, SelfEdit, TextDocument
from tutelage.domain.task import Question, Quiz
from tutelage.rpc.config import ChannelSettings, ServerSettings, TlsSettings
from tutelage.rpc.server import serve
from tutelage.v1 import student_service_pb2 as pb
from tutelage.v1 import student_service_pb2_grpc as pb_grpc
from tutelage.wire.evaluation import answer_to_wire, evaluation_outcome_to_wire, evaluation_progress_to_wire
from tutelage.wire.task import question_to_wire

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
    grpc_service_names = (NAME,)

    def __init__(self) -> None:
        self.servicer = Servicer()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.stopped = False

    def register(self, server: grpc.aio.Server) -> None:
        pb_grpc.add_StudentServiceServicer_to_server(self.servicer, server)

    async def start(self) -> None:
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


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "bug"])
def test_domain_error_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            with pytest.raises(type(FAULTS[name])) as caught:
                await client.get_evaluation(name)
            sent = FAULTS[name]
            assert type(caught.value) is type(sent)
            assert str(caught.value) == str(sent)
            for attribute in ("violations", "kind", "name", "retry_after_s"):
                assert getattr(caught.value, attribute, None) == getattr(sent, attribute, None)

    run(scenario())


def test_unknown_error_is_hidden_and_own_abort_passes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            with pytest.raises(TutelageError, match="INTERNAL: internal error") as caught:
                await client.get_evaluation("bug")
            assert "secret" not in str(caught.value)
            with pytest.raises(TutelageError, match="OUT_OF_RANGE: own words"):
                await client.get_evaluation("aborted")

    run(scenario())


def test_stream_ends_with_outcome_or_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            events = [event async for event in client.evaluate(KEY, timeout_s=10)]
            assert events == [
                EvaluationProgress(EvaluationPhase.TRAINING, 1, 2, 0.5),
                Rejection(RejectionReason.EMPTY, message="nothing to learn"),
            ]
            failing = client.evaluate(KEY, run_id="fail", timeout_s=10)
            assert isinstance(await anext(failing), EvaluationProgress)
            with pytest.raises(Exhausted) as caught:
                await anext(failing)
            assert caught.value.retry_after_s == 2.5

    run(scenario())


def test_leaving_a_stream_cancels_the_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            running(tmp_path) as (service, ready),
            StudentClient(ChannelSettings(address=ready["address"])) as client,
        ):
            stream = client.evaluate(KEY, run_id="wait", timeout_s=30)
            assert isinstance(await anext(stream), EvaluationProgress)
            await stream.aclose()  # type: ignore[attr-defined]
            await asyncio.wait_for(service.servicer.cancelled.wait(), 10)

    run(scenario())


def test_deadline_is_unavailable_with_the_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            with pytest.raises(Unavailable, match=ready["address"]):
                _ = [event async for event in client.evaluate(KEY, run_id="wait", timeout_s=0.5)]

    run(scenario())


def test_sync_client_does_the_same(tmp_path: Path) -> None:
    def blocking(address: str) -> None:
        with SyncStudentClient(ChannelSettings(address=address)) as client:
            assert client.answer([QUESTION], adapter_version="") == (Answer("1", "Who?", {"exact": 1.0}),)
            assert len(list(client.evaluate(KEY, timeout_s=10))) == 2
            with pytest.raises(NotFound, match="start it first"):
                client.get_evaluation("not_found")

    async def scenario() -> None:
        async with running(tmp_path) as (_, ready):
            await asyncio.to_thread(blocking, ready["address"])

    run(scenario())


def test_message_over_the_limit_is_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            running(tmp_path, max_message_mib=1) as (_, ready),
            StudentClient(ChannelSettings(address=ready["address"])) as client,
        ):
            big = [Question("1", "x" * 2**21, "a")]
            with pytest.raises(InvalidInput) as caught:
                await client.answer(big, adapter_version="")
            (violation,) = caught.value.violations
            assert violation.field == "message"
            assert int(violation.value.split()[0]) > 2**21
            assert f"at most {2**20} bytes" in violation.allowed
            assert len(await client.answer([QUESTION], adapter_version="")) == 1
            # On the wire it is the code that every gRPC client knows.
            async with grpc.aio.insecure_channel(ready["address"]) as channel:
                request = pb.AnswerRequest(questions=[question_to_wire(item) for item in big])
                with pytest.raises(grpc.aio.AioRpcError) as raw:
                    await pb_grpc.StudentServiceStub(channel).Answer(request, timeout=10)
            assert raw.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            # The limit of the client's own end is told alike, before anything is sent.
            async with StudentClient(ChannelSettings(address=ready["address"], max_message_mib=1)) as small:
                with pytest.raises(InvalidInput, match="message"):
                    await small.answer(big, adapter_version="")

    run(scenario())


def test_health_answers_while_starting_and_calls_are_put_off(tmp_path: Path) -> None:
    async def scenario() -> None:
        with_port = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = with_port.sockets[0].getsockname()[1]
        with_port.close()
        await with_port.wait_closed()
        service, stop = ExampleService(), asyncio.Event()
        service.may_start.clear()
        task = asyncio.create_task(serve(service, ServerSettings(port=port, grace_s=1), stop=stop))
        address = f"127.0.0.1:{port}"
        async with grpc.aio.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            request = health_pb2.HealthCheckRequest(service=NAME)
            state = await check(request, timeout=10, wait_for_ready=True)
            assert state.status == health_pb2.HealthCheckResponse.NOT_SERVING
            async with StudentClient(ChannelSettings(address=address)) as client:
                with pytest.raises(Unavailable, match="starting"):
                    await client.answer([QUESTION], adapter_version="")
                service.may_start.set()
                for _ in range(200):
                    state = await check(request, timeout=10)
                    if state.status == health_pb2.HealthCheckResponse.SERVING:
                        break
                    await asyncio.sleep(0.02)
                assert state.status == health_pb2.HealthCheckResponse.SERVING
                assert len(await client.answer([QUESTION], adapter_version="")) == 1
        stop.set()
        await task

    run(scenario())


def test_a_start_that_fails_ends_the_server_with_its_error(tmp_path: Path) -> None:
    class Broken(ExampleService):
        async def start(self) -> None:
            raise NotFound("model", "no-such-model")

    async def scenario() -> None:
        with pytest.raises(NotFound, match="no-such-model"):
            await serve(Broken(), ServerSettings(grace_s=0))

    run(scenario())


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready):
            port = int(ready["address"].rsplit(":", 1)[1])
            with pytest.raises(InvalidInput, match=str(port)):
                await serve(ExampleService(), ServerSettings(port=port))

    run(scenario())


def test_metrics_page_counts_calls_by_code(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            with pytest.raises(NotFound):
                await client.get_evaluation("not_found")
            url = f"http://{ready['metrics_address']}/metrics"
            page = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read())).decode()
        labels = f'grpc_code="NOT_FOUND",grpc_method="GetEvaluation",grpc_service="{NAME}"'
        line = next(line for line in page.splitlines() if line.startswith("grpc_server_handled_total{" + labels))
        assert float(line.split()[-1]) >= 1
        # Every method is there from the start, also those that were never called.
        assert f'grpc_server_started_total{{grpc_method="Commit",grpc_service="{NAME}"}} 0.0' in page
        assert "tutelage_build_info" in page

    run(scenario())


@pytest.mark.parametrize(
    ("tls", "token", "fields"),
    [
        (False, False, ["server.tls", "server.token_file"]),
        (True, False, ["server.token_file"]),
        (False, True, ["server.tls"]),
    ],
)
def test_listening_beyond_loopback_needs_tls_and_token(
    tmp_path: Path, tls: bool, token: bool, fields: list[str]
) -> None:
    pem = TlsSettings(certificate=tmp_path / "c.pem", key=tmp_path / "k.pem") if tls else None
    settings = ServerSettings(host="0.0.0.0", tls=pem, token_file=tmp_path / "token" if token else None)
    with pytest.raises(InvalidInput) as caught:
        asyncio.run(serve(ExampleService(), settings))
    assert [violation.field for violation in caught.value.violations] == fields


def test_tls_and_token_let_in_only_who_has_both(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    pem, key = certificate
    token, wrong = tmp_path / "token", tmp_path / "wrong"
    token.write_text("right-token\n")
    wrong.write_text("wrong-token\n")

    async def scenario() -> None:
        tls = TlsSettings(certificate=pem, key=key)
        async with running(tmp_path, host="localhost", tls=tls, token_file=token) as (_, ready):
            address = ready["address"]
            async with StudentClient(ChannelSettings(address=address, ca=pem, token_file=token)) as client:
                assert len(await client.answer([QUESTION], adapter_version="")) == 1
            async with StudentClient(ChannelSettings(address=address, ca=pem, token_file=wrong)) as client:
                with pytest.raises(TutelageError, match="UNAUTHENTICATED: the token is wrong"):
                    await client.answer([QUESTION], adapter_version="")
                with pytest.raises(TutelageError, match="UNAUTHENTICATED"):
                    _ = [event async for event in client.evaluate(KEY, timeout_s=10)]
            async with StudentClient(ChannelSettings(address=address, ca=pem)) as client:
                with pytest.raises(TutelageError, match="a bearer token is required"):
                    await client.answer([QUESTION], adapter_version="")
            async with StudentClient(ChannelSettings(address=address)) as client:
                with pytest.raises(Unavailable):
                    await client.answer([QUESTION], adapter_version="")

    run(scenario())


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost and its key."""
    pem, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(pem)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("the openssl command is not installed")
    return pem, key


def test_a_token_is_not_sent_in_plain_text_beyond_loopback(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t")

    async def scenario() -> None:
        with pytest.raises(InvalidInput, match="TLS is required"):
            StudentClient(ChannelSettings(address="192.0.2.1:5000", token_file=token))

    run(scenario())


PROGRAM = """
import asyncio, sys
from pathlib import Path
from tutelage.rpc.config import ServerSettings
from tutelage.rpc.server import serve
class Idle:
    name = "student"
    grpc_service_names = ("tutelage.v1.StudentService",)
    def register(self, server): pass
    async def start(self): import tutelage.v1.student_service_pb2
    async def ready(self): return True
    async def stop(self): print("stopped", flush=True)
import tutelage.v1.student_service_pb2
asyncio.run(serve(Idle(), ServerSettings(ready_file=Path(sys.argv[1]), log_format="json", metrics_port=0)))
"""


def test_sigterm_ends_the_process_in_order(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(ready)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 30
        while not ready.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert json.loads(ready.read_text())["pid"] == process.pid
        process.terminate()
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out == "stopped\n"
    assert not ready.exists()
    assert json.loads(err.splitlines()[-1])["message"] == "student has stopped"
