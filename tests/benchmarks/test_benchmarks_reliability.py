"""The reliability benchmark: published rewards analysed where they are at hand, and a plain word where not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks/reward_reliability.py"
PUBLISHED = Path(__file__).parents[3] / "shared/data/published_rewards_round1.json"


def test_published_rewards_or_a_plain_word(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--published-only"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(done.stdout.splitlines()[-1])["reliability"]
    if PUBLISHED.exists():
        published = found["published accuracy"]
        assert round(published["mean"], 2) == 0.32
        assert published["low"] < published["mean"] < published["high"]
    else:
        assert found == {}
        assert "skipped" in done.stdout
