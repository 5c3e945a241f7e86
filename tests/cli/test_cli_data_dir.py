"""A data_dir belongs to one teacher or student: a second one is told so at once, and a killed one leaves it free."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOLD = """
import sys, time
from pathlib import Path
from tutelage.cli.services import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = holder(tmp_path / "data")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("room", ["student", "teacher"])
def test_a_second_process_on_the_same_folder_is_refused(held: subprocess.Popen[str], tmp_path: Path, room: str) -> None:
    config = tmp_path / "service.yaml"
    config.write_text(f"model: smollm2-135m-instruct\ndata_dir: {tmp_path / 'data'}\n")
    command = [sys.executable, "-m", "tutelage.cli.main", room, "serve", "--config", str(config)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 1
    (line,) = second.stderr.strip().splitlines()
    assert line.startswith(f"error: data_dir {tmp_path / 'data'} is in use by another process")


def test_a_killed_process_leaves_the_folder_free(held: subprocess.Popen[str], tmp_path: Path) -> None:
    held.send_signal(signal.SIGKILL)
    held.wait()
    following = holder(tmp_path / "data")
    try:
        assert following.stdout is not None
        assert following.stdout.readline() == "held\n"
    finally:
        following.kill()
        following.communicate()
