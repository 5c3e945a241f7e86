"""The benchmark of the orchestrator runs small, its last line can be read, and its figures are no disgrace.

The ceilings are several times what an idle machine shows (docs/scale.md): they fail for a cost that grows with the
number of students or of evaluations, and not for a machine that is busy with other things.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(400)
def test_sixty_four_students_are_kept_busy_at_little_cost() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "orchestrator.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert (figures["students"], figures["evaluations"]) == (64, 1280)
    assert 0 < figures["marginal_cpu_ms"] < figures["cpu_ms_per_evaluation"] < 15
    assert 10 < figures["peak_mib"] < 400
    assert 0.6 < figures["busy_share_64"] <= 1
