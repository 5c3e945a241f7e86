"""Every benchmark that can be run small is run small, as a command, and ends with one JSON object."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = sorted(
    path.name
    for path in (ROOT / "benchmarks").glob("*.py")
    if re.search(r'add_argument\(\s*"--quick"', path.read_text())
)


def test_the_benchmarks_that_docs_rest_on_are_found() -> None:
    assert {"student_learns.py", "successive_commits.py"} <= set(QUICK)


def no_constants(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", [*QUICK, "inner_loop.py --geometry qwen2.5-tiny"])
def test_benchmark_runs_and_ends_with_one_json_object(command: str, tmp_path: Path) -> None:
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), "--quick", *options],
        # Elsewhere, so that a path that holds only in the checkout is found out.
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "0"},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Traceback" not in done.stderr
    last = done.stdout.rstrip("\n").splitlines()[-1]
    result = json.loads(last, parse_constant=no_constants)
    assert isinstance(result, dict)
    assert result
    # A benchmark leaves nothing where it was called.
    assert list(tmp_path.iterdir()) == []
