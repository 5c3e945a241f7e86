"""`tutelage run watch` as a process: in a pipe, on terminals of two kinds, over a restart, and of a run that ended."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.client import SyncOrchestratorClient
from tutelage.domain.task import Quiz
from tutelage.rpc.config import ChannelSettings

ESCAPE = "\x1b"
EVALUATIONS = 8
CONFIG = """
students: [a, b]
candidates: 2
rounds: 1
update: {when: never}
commit: {when: never}
reward: {grader_weights: {contains: 1.0}}
"""


def command(address: str) -> list[str]:
    return [sys.executable, "-m", "tutelage.cli.main", "run", "watch", "r", "--orchestrator", address]


def start(world: Any, address: str) -> None:
    with SyncOrchestratorClient(ChannelSettings(address=address)) as client:
        client.start_run("r", CONFIG, world.tasks, Quiz())


def evaluations_told(text: str) -> list[tuple[str, str]]:
    """Id and student of each evaluation that was told to be done."""
    return re.findall(r"evaluation_done .*\bevaluation=(\w+) .*\bstudent=(\w+)", text)


def in_terminal(arguments: list[str], kind: str, limit_s: float = 90) -> tuple[int, str]:
    """A command on a terminal of that kind: its exit code and everything it wrote."""
    leader, follower = pty.openpty()
    environment = os.environ | {"TERM": kind, "COLUMNS": "160", "LINES": "40"}
    process = subprocess.Popen(arguments, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    written = b""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            # Linux says so when the other side is closed.
            break
        if not chunk:
            break
        written += chunk
    os.close(leader)
    return process.wait(timeout=10), written.decode()


def test_in_a_pipe_it_goes_on_after_a_restart_and_tells_each_event_once(
    world: Any, served: Callable[..., Any], tmp_path: Path
) -> None:
    # Longer than the command needs to start: the restart comes in the middle.
    world.a.delay_s = world.b.delay_s = 2.5
    log = tmp_path / "watch.log"

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    with log.open("wb") as output:
        with served() as address:
            start(world, address)
            watching = subprocess.Popen(command(address), stdout=output, stderr=subprocess.STDOUT)
            wait_for("evaluation_done")
        wait_for("orchestrator lost")
        world.a.delay_s = world.b.delay_s = 0.1
        with served(server={"port": int(address.rpartition(":")[2])}):
            assert watching.wait(timeout=60) == 0, log.read_text()
    text = log.read_text()
    assert ESCAPE not in text
    told = evaluations_told(text)
    assert len(told) == len(set(told)) == EVALUATIONS
    assert text.count("run_resumed") == 1
    assert f"{EVALUATIONS}/{EVALUATIONS} evaluations" in text
    assert text.rstrip().endswith("done")


@pytest.mark.parametrize("kind", ["dumb", "xterm-256color"])
def test_on_a_terminal(world: Any, served: Callable[..., Any], kind: str) -> None:
    world.a.delay_s = world.b.delay_s = 0.3
    with served() as address:
        start(world, address)
        code, text = in_terminal(command(address), kind)
    assert code == 0, text
    assert (ESCAPE in text) == (kind != "dumb")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert plain.count("evaluation_done") == EVALUATIONS
    assert f"{EVALUATIONS}/{EVALUATIONS} evaluations" in plain


def test_a_run_that_has_ended_is_told_whole(world: Any, served: Callable[..., Any]) -> None:
    with served() as address:
        start(world, address)
        outputs = [
            subprocess.run(command(address), capture_output=True, text=True, timeout=60, check=True).stdout
            for _ in range(2)
        ]
    assert len(evaluations_told(outputs[0])) == EVALUATIONS
    # Of an ended run the same is told as while it went on.
    assert evaluations_told(outputs[1]) == evaluations_told(outputs[0])
