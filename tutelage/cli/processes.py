"""Services as child processes that cannot outlive their parent: own groups, ready files, always stopped."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tutelage.cli.interrupts import ENDING
from tutelage.domain.errors import Unavailable

_PR_SET_PDEATHSIG = 1
_LAST_LINES = 15


def _die_with_parent() -> Callable[[], None] | None:
    """What a child runs before exec so that the kernel ends it when this process vanishes (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    # Loaded here: between fork and exec nothing may be imported or allocated at will.
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return arm


@contextlib.contextmanager
def interrupts_after() -> Iterator[None]:
    """Lets signals that ask to end take effect after the block; in the main thread.

    While a process forks, Python drops what a handler raises, and a child that is not noted down yet would be left.
    """
    seen: list[int] = []
    previous = {number: signal.signal(number, lambda which, _: seen.append(which)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if seen:
            signal.raise_signal(seen[0])


def run_to_end(command: Sequence[str]) -> int:
    """Its exit code; whatever ends the wait, such as Ctrl-C, ends the command and all that it started."""
    process = None
    try:
        with interrupts_after():
            process = subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_parent())
        return process.wait()
    finally:
        if process is not None:
            _kill_group(process.pid)
            process.wait()


@dataclass
class ServiceProcess:
    name: str
    process: subprocess.Popen[bytes]
    ready_file: Path
    log: Path
    address: str = ""
    metrics_address: str = ""

    def last_lines(self) -> str:
        """The end of its log, for messages."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-_LAST_LINES:])


class ServiceProcesses:
    """Starts services by `tutelage ROOM serve --config FILE`, and on leaving stops all of them and their children."""

    def __init__(self, threads: int, stop_grace_s: float = 15.0) -> None:
        self._threads, self._stop_grace_s = threads, stop_grace_s
        self._started: list[ServiceProcess] = []

    def __enter__(self) -> ServiceProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def start(self, name: str, room: str, config: Path, ready_file: Path, log: Path) -> ServiceProcess:
        """Starts one service; its output goes to the log file."""
        ready_file.unlink(missing_ok=True)
        count = str(self._threads)
        environment = {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "TOKENIZERS_PARALLELISM": "0"}
        with log.open("wb") as output, interrupts_after():
            process = subprocess.Popen(
                [sys.executable, "-m", "tutelage.cli.main", room, "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent(),
                env=environment,
            )
            started = ServiceProcess(name, process, ready_file, log)
            self._started.append(started)
        return started

    def wait_ready(self, services: list[ServiceProcess], timeout_s: float) -> None:
        """Returns when all serve, their addresses filled in; Unavailable when one ends or takes too long."""
        deadline = time.monotonic() + timeout_s
        waiting = list(services)
        while waiting:
            for service in list(waiting):
                if service.ready_file.exists():
                    content = json.loads(service.ready_file.read_text(encoding="utf-8"))
                    service.address = content["address"]
                    service.metrics_address = content.get("metrics_address") or ""
                    waiting.remove(service)
            self.check(services)
            if waiting and time.monotonic() > deadline:
                names = ", ".join(service.name for service in waiting)
                raise Unavailable(f"{names} did not get ready in {timeout_s:.0f} s\n{waiting[0].last_lines()}")
            time.sleep(0.2)

    def check(self, services: list[ServiceProcess] | None = None) -> None:
        """Unavailable, with the end of its log, when a service has ended."""
        for service in self._started if services is None else services:
            code = service.process.poll()
            if code is not None:
                raise Unavailable(
                    f"{service.name} ended with exit code {code}; its log {service.log} ends:\n{service.last_lines()}"
                )

    def stop(self) -> None:
        """SIGTERM, the last started first; after the grace SIGKILL to whole groups. Returns when none is left."""
        # A second Ctrl-C must not leave processes behind.
        previous = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for service in reversed(self._started):
                if service.process.poll() is None:
                    service.process.terminate()
            deadline = time.monotonic() + self._stop_grace_s
            for service in reversed(self._started):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    service.process.wait(max(0.0, deadline - time.monotonic()))
                # Children of a service, such as a trainer, are in its group and end with it.
                _kill_group(service.process.pid)
                service.process.wait()
            self._started.clear()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
