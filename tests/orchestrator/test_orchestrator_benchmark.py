"""The benchmark of the orchestrator runs, and its last line can be read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_last_line_of_the_benchmark_can_be_read() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "orchestrator.py"), "--size", "3,2,2,0.1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["students"], figures["evaluations"]) == (3, 12)
    assert figures["cpu_ms_per_evaluation"] > 0
    assert figures["peak_mib"] > 10
