"""The demo on a tiny model: it shows what it promises, and no process outlives it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tutelage.models.tiny import write_tiny_model

if not Path("/proc").is_dir():
    pytest.skip("processes are looked up in /proc", allow_module_level=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A byte-level tokenizer needs room for the examples' documents.
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny", context=4096)


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that were started with a file in this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command and " demo " not in command:
                found.append(command)
    return found


class Demo:
    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self._shown = folder, folder.with_suffix(".txt")
        with self._shown.open("wb") as shown:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tutelage.cli.main", "demo", "--dir", str(folder), "--model", str(model)],
                stdin=subprocess.DEVNULL, stdout=shown, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0", "COLUMNS": "100"},
            )  # fmt: skip

    @property
    def shown(self) -> str:
        return self._shown.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, timeout_s: float = 200) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert self.process.poll() is None, self.shown
            assert time.monotonic() < deadline, self.shown
            time.sleep(0.1)

    def nothing_left(self, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while left := processes_of(self.folder):
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


@pytest.fixture
def demo(tmp_path: Path, model: Path) -> Iterator[Demo]:
    # Whoever starts the tests behind a script has this signal ignored, and children of theirs inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = Demo(tmp_path / "demo", model)
    signal.signal(signal.SIGINT, before)
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.process.wait(60)
    running.nothing_left()


@pytest.mark.timeout(900)
def test_it_shows_what_it_promises_and_ends_clean(demo: Demo) -> None:
    demo.wait_for("3. run")
    # The services are seen while they run, so that seeing none afterwards means something.
    assert len(processes_of(demo.folder)) >= 4
    assert demo.process.wait(800) == 0, demo.shown
    for part in (
        "evaluations",
        "of evaluations left",
        "best self-edit",
        "quiz scores, before > after",
        "before:",
        "after:",
        "right:",
    ):
        assert part in demo.shown, part
    report = demo.folder / "report.html"
    assert f"report: {report}" in demo.shown
    assert "<html" in report.read_text(encoding="utf-8")
    assert "nothing is left running" in demo.shown
    assert processes_of(demo.folder) == []


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_interrupted_it_leaves_no_process(demo: Demo, number: signal.Signals, code: int) -> None:
    demo.wait_for("3. run")
    assert len(processes_of(demo.folder)) >= 4
    demo.process.send_signal(number)
    assert demo.process.wait(60) == code, demo.shown
    # Its services end with it, and so does its run.
    assert "goes on" not in demo.shown
    if number is not signal.SIGKILL:
        assert "interrupted; all services are stopped" in demo.shown
        assert "Traceback" not in demo.shown
        assert processes_of(demo.folder) == []
    demo.nothing_left()


def test_interrupted_while_the_services_start_it_leaves_no_process(demo: Demo) -> None:
    demo.wait_for("2. services")
    demo.process.send_signal(signal.SIGINT)
    assert demo.process.wait(60) == 130, demo.shown
    assert processes_of(demo.folder) == []
