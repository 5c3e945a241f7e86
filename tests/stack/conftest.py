"""Real processes on a tiny random model: single services, or a whole stack on loopback ports that survive a restart."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.stack.spoilt_requests import study, write
from tutelage.client import SyncOrchestratorClient, SyncStudentClient, SyncTeacherClient
from tutelage.domain.evaluation import EvaluationReport
from tutelage.models.tiny import write_tiny_model
from tutelage.rpc.config import ChannelSettings

STUDENTS = ("ada", "ben")
READY_S = 120.0


class Stack:
    """One teacher, two students and an orchestrator as processes; each can be killed and started again."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._addresses: dict[str, str] = {}

    def start_all(self) -> None:
        for name in ("teacher", *STUDENTS):
            self.start(name)
        for name in ("teacher", *STUDENTS):
            self.wait_ready(name)
        self.start("orchestrator")
        self.wait_ready("orchestrator")

    def address(self, name: str) -> str:
        return self._addresses[name]

    def _config(self, name: str) -> dict[str, Any]:
        address = self._addresses.get(name)
        server = {
            # The port of the first start is kept, so that the others find it again.
            "port": int(address.rpartition(":")[2]) if address else 0,
            "metrics_port": 0,
            "ready_file": str(self._ready_file(name)),
            "grace_s": 2,
        }
        if self._room(name) == "orchestrator":
            return {
                "data_dir": str(self.folder / name),
                "teacher": {"address": self._addresses["teacher"]},
                "students": {student: {"address": self._addresses[student]} for student in STUDENTS},
                "retry": {"initial_s": 0.2, "maximum_s": 1.0},
                "server": server,
            }
        settings: dict[str, Any] = {
            "model": str(self.model),
            "quantisation": "none",
            "compute_dtype": "float32",
            "threads": 1,
            "data_dir": str(self.folder / name),
            "server": server,
        }
        if name in STUDENTS:
            # The bits of a run are compared with those of another.
            settings["deterministic"] = True
        return settings

    def _room(self, name: str) -> str:
        """Which service a process is."""
        return "student" if name in STUDENTS else name

    def _ready_file(self, name: str) -> Path:
        return self.folder / f"{name}.ready.json"

    def start(self, name: str) -> None:
        config = self.folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(self._config(name)), encoding="utf-8")
        self._ready_file(name).unlink(missing_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "tutelage.cli.main", self._room(name), "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"},
            )

    def wait_ready(self, name: str) -> None:
        deadline = time.monotonic() + READY_S
        while not self._ready_file(name).exists():
            assert self._processes[name].poll() is None, f"{name} ended:\n{self.log(name)}"
            assert time.monotonic() < deadline, f"{name} is not ready:\n{self.log(name)}"
            time.sleep(0.05)
        self._addresses[name] = json.loads(self._ready_file(name).read_text(encoding="utf-8"))["address"]

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-4000:]

    def kill(self, name: str) -> None:
        """kill -9 of the service and of everything it started."""
        process = self._processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for name, process in list(self._processes.items()):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill(name)

    def orchestrator(self) -> SyncOrchestratorClient:
        return SyncOrchestratorClient(ChannelSettings(address=self._addresses["orchestrator"]))


class Service:
    """One service as a process, started by the command that an operator types."""

    def __init__(self, folder: Path, room: str, settings: dict[str, Any]) -> None:
        self._ready, self._out, self._err = folder / "ready.json", folder / "out.txt", folder / "err.txt"
        config = folder / "service.yaml"
        server = {"ready_file": str(self._ready), **settings.pop("server", {})}
        config.write_text(
            yaml.safe_dump({"data_dir": str(folder / "data"), **settings, "server": server}, sort_keys=False)
        )
        with self._out.open("ab") as out, self._err.open("ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tutelage.cli.main", room, "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"},
            )

    @property
    def out(self) -> str:
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        return self._err.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self) -> str:
        """Its address."""
        deadline = time.monotonic() + READY_S
        while not self._ready.exists():
            assert self.process.poll() is None, f"ended:\n{self.err}"
            assert time.monotonic() < deadline, f"not ready:\n{self.err}"
            time.sleep(0.05)
        return str(json.loads(self._ready.read_text(encoding="utf-8"))["address"])

    @property
    def metrics_address(self) -> str:
        """Once it is ready, of its page of metrics."""
        return str(json.loads(self._ready.read_text(encoding="utf-8"))["metrics_address"])

    def stop(self, timeout_s: float = 20) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """Ends whatever of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def start_service(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Callable[..., Service]]:
    """Starts services by room and settings (a tiny model where none is named); none is left at the module's end."""
    services: list[Service] = []

    def start(room: str, **settings: Any) -> Service:
        folder = tmp_path_factory.mktemp(room)
        if room != "orchestrator":
            plain = {"model": str(tiny_model), "quantisation": "none", "compute_dtype": "float32", "threads": 1}
            settings = {**plain, **settings}
        services.append(Service(folder, room, settings))
        return services[-1]

    yield start
    for service in services:
        service.kill()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def make_stack(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[[str], Stack]]:
    """Starts stacks, each in a folder of its own, and stops them all."""
    stacks: list[Stack] = []

    def make(name: str) -> Stack:
        folder = tmp_path / name
        folder.mkdir()
        stack = Stack(folder, tiny_model)
        stacks.append(stack)
        stack.start_all()
        return stack

    yield make
    for stack in stacks:
        stack.stop()


@pytest.fixture(scope="module")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of the student that bad input is sent to."""
    return tmp_path_factory.mktemp("ada")


@pytest.fixture(scope="module")
def student_service(start_service: Callable[..., Service], student_folder: Path) -> Service:
    return start_service(
        "student",
        data_dir=str(student_folder),
        max_new_tokens=8,
        loaded_adapters=1,
        bounds={"max_learning_rate": 0.01, "max_epochs": 4},
        server={"max_message_mib": 1},
    )


@pytest.fixture(scope="module")
def teacher_service(start_service: Callable[..., Service]) -> Service:
    return start_service("teacher")


@pytest.fixture(scope="module")
def orchestrator_service(
    start_service: Callable[..., Service], student_service: Service, teacher_service: Service
) -> Service:
    """Knows that student, and one that is absent."""
    return start_service(
        "orchestrator",
        teacher={"address": teacher_service.wait_ready()},
        students={
            "ada": {"address": student_service.wait_ready()},
            "absent": {"address": f"127.0.0.1:{nobodys_port()}"},
        },
        retry={"initial_s": 0.1, "maximum_s": 0.2},
    )


def nobodys_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture
def student(student_service: Service) -> Iterator[SyncStudentClient]:
    """Goes on to evaluate after each test."""
    with SyncStudentClient(ChannelSettings(address=student_service.wait_ready())) as client:
        yield client
        assert isinstance(study(client), EvaluationReport)


@pytest.fixture
def teacher(teacher_service: Service) -> Iterator[SyncTeacherClient]:
    """Goes on to write after each test."""
    with SyncTeacherClient(ChannelSettings(address=teacher_service.wait_ready())) as client:
        yield client
        assert len(write(client)) == 1


@pytest.fixture
def orchestrator(orchestrator_service: Service) -> Iterator[SyncOrchestratorClient]:
    """Took in nothing of what a test asked, and goes on to answer."""
    with SyncOrchestratorClient(ChannelSettings(address=orchestrator_service.wait_ready())) as client:
        before = [run.run_id for run in client.list_runs()]
        yield client
        assert [run.run_id for run in client.list_runs()] == before
        assert [item.name for item in client.list_students()] == ["ada", "absent"]
