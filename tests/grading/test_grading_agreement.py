"""Agreement and kappa as the graders' benchmark computes them, against values worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.graders import agreement, development, intervals

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_kappa_by_hand() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: agreement 0.7, by chance 0.5, kappa 0.4.
    pairs = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert agreement(pairs) == pytest.approx((0.7, 0.4))
    assert agreement([(True, True)]) == (1.0, 1.0)


def test_intervals_hold_the_estimate_and_are_the_same_for_a_seed() -> None:
    verdicts = {str(i): [(i % 2 == 0, i % 3 == 0)] * 3 for i in range(30)}
    found = intervals(verdicts, 1)
    assert found == intervals(verdicts, 1)
    same, kappa = agreement([pair for pairs in verdicts.values() for pair in pairs])
    assert found[0][0] <= same <= found[0][1]
    assert found[1][0] <= kappa <= found[1][1]


def test_halves_are_fixed() -> None:
    assert [development(text) for text in ("Who?", "When?", "Where?", "Why?")] == [False, False, False, False]


@pytest.mark.parametrize(("arguments", "skipped"), [(["--quick"], False), (["--data", "absent.json"], True)])
def test_benchmark_runs_or_skips_plainly(arguments: list[str], skipped: bool, tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "graders.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last.get("skipped", False) is skipped
    assert skipped or last["graders"]["lenient"]["kappa"] > last["graders"]["contains"]["kappa"]
