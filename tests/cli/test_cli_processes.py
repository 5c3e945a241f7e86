"""Services as child processes: whoever asks to end is heard at any moment, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

INTERRUPTED_WHILE_IT_FORKS = """
import os, signal, sys
from pathlib import Path
from tutelage.cli.processes import ServiceProcesses

# Who was started in the background ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path(sys.argv[1])
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
processes = ServiceProcesses(1)
try:
    processes.start("ada", "student", folder / "none.yaml", folder / "ready.json", folder / "log.txt")
except KeyboardInterrupt:
    print("interrupted", len(processes._started), flush=True)
processes.stop()
"""
WAITS = """
import signal, sys
from tutelage.cli.processes import run_to_end

# As the demo does: asked to end, it ends as on Ctrl-C; which who was started in the background ignores.
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.default_int_handler)
child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
run_to_end([sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"])
"""


def test_an_interrupt_while_a_process_forks_is_not_lost(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_IT_FORKS, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (0, "interrupted 1\n"), ended.stderr
    assert "ignored" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_with_who_waits_for_it(number: signal.Signals) -> None:
    """With all that it started."""
    with subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        os.kill(process.pid, number)
        try:
            assert process.wait(30) != 0
        finally:
            process.kill()
    for _ in range(100):
        try:
            os.kill(grandchild, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the command goes on")
