"""A real server on loopback: how it starts and ends, what it shows of itself, and whom it lets in."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.rpc.example_service import KEY, NAME, QUESTION, ExampleService, run, running
from tutelage.client import StudentClient
from tutelage.domain.errors import InvalidInput, NotFound, TutelageError, Unavailable
from tutelage.rpc import metrics, server
from tutelage.rpc.config import ChannelSettings, ServerSettings, TlsSettings
from tutelage.rpc.server import serve


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
            stub: Any = health_pb2_grpc.HealthStub(channel)
            check = stub.Check
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


def test_health_follows_a_service_that_fails_or_does_not_answer_and_tells_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "READY_POLL_S", 0.05)
    monkeypatch.setattr(server, "READY_TIMEOUT_S", 0.2)

    class Wavering(ExampleService):
        fault: Exception | None = None

        def __init__(self) -> None:
            super().__init__()
            self.answers = asyncio.Event()
            self.answers.set()
            self.asked = 0

        async def ready(self) -> bool:
            self.asked += 1
            answered = asyncio.ensure_future(self.answers.wait())
            try:
                await asyncio.shield(answered)
            except asyncio.CancelledError:
                # As a transaction that the database does not end: it cannot be left before.
                await asyncio.wait({answered})
                raise
            if self.fault:
                raise self.fault
            return True

    async def scenario() -> None:
        service, stop, ready = Wavering(), asyncio.Event(), tmp_path / "ready.json"
        task = asyncio.create_task(serve(service, ServerSettings(ready_file=ready, grace_s=0), stop=stop))
        while not ready.exists():  # noqa: ASYNC110 - the server writes it
            await asyncio.sleep(0.02)
        async with grpc.aio.insecure_channel(json.loads(ready.read_text())["address"]) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            wanted = health_pb2.HealthCheckResponse

            async def until(serving: bool) -> None:
                async with asyncio.timeout(10):
                    async for state in stub.Watch(health_pb2.HealthCheckRequest(service=NAME)):
                        if state.status == (wanted.SERVING if serving else wanted.NOT_SERVING):
                            assert metrics.SERVING._value.get() == serving
                            return

            service.answers.clear()
            await until(serving=False)
            asked = service.asked
            await asyncio.sleep(0.5)
            assert service.asked == asked
            service.answers.set()
            await until(serving=True)
            service.fault = Unavailable("the database is away")
            await until(serving=False)
            await asyncio.sleep(0.3)
            service.fault = None
            await until(serving=True)
        stop.set()
        await task

    run(scenario())
    written = capfd.readouterr().err
    told = [line.partition("student is not ready: ")[2] for line in written.splitlines() if "not ready" in line]
    assert told == ["no answer within 0.2 s", "the database is away"]
    assert "Traceback" not in written


def test_a_ready_file_that_a_killed_service_left_does_not_say_that_the_next_one_serves(tmp_path: Path) -> None:
    ready = tmp_path / "ready.json"
    ready.write_text('{"address": "127.0.0.1:1", "metrics_address": "", "pid": 1}')

    async def scenario() -> None:
        service, stop = ExampleService(), asyncio.Event()
        service.may_start.clear()
        settings = ServerSettings(ready_file=ready, grace_s=0)
        task = asyncio.create_task(serve(service, settings, stop=stop))
        await asyncio.wait_for(service.starting.wait(), 15)
        assert not ready.exists()
        service.may_start.set()
        while not ready.exists():  # noqa: ASYNC110 - the server writes it
            await asyncio.sleep(0.02)
        assert json.loads(ready.read_text())["pid"] != 1
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
