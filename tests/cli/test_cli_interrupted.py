"""A command that was asked to end says so by its exit code, whatever Python was doing at that moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Importing a module with a dataclass executes text, and so does much else. Python remembers a KeyboardInterrupt out of
# such text as unhandled, even where it is caught, and ends the process by SIGINT whatever exit code it asked for.
_TEXT = """
import os, signal, sys
from tutelage.cli.interrupts import Interrupts
try:
    with Interrupts():
        exec("import os, signal; os.kill(os.getpid(), signal.{name}); [0 for _ in range(10**6)]")
except KeyboardInterrupt:
    sys.exit(130)
"""
_LOOP = """
import asyncio, os, signal, sys
from tutelage.cli.interrupts import Interrupts
async def work():
    asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.{name})
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.01)
        print("cleaned up")
try:
    with Interrupts() as interrupts:
        interrupts.run(work())
except KeyboardInterrupt:
    sys.exit(130)
"""


def heard() -> None:
    """What ignores signals passes that on: a shell SIGINT to its background jobs, nohup SIGHUP."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    (folder / "interrupted_program.py").write_text(program, encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-m", "interrupted_program"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(root)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=heard,
    )


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_text_is_executed_ends_with_the_code_that_was_asked_for(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, _TEXT.format(name=name)).returncode == 130


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_in_the_event_loop_lets_the_work_clean_up(tmp_path: Path, name: str) -> None:
    ended = run(tmp_path, _LOOP.format(name=name))
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "cleaned up\n", "")
