"""`tutelage run rewards`: what it prints, and what is wrong with its file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.cli.rewards import best_first, comparison_text, csv_text
from tutelage.domain.recomputed_reward import RecomputedReward, compared


def reward(index: int, stored: float | None, recomputed: float | None, task: str = "x") -> RecomputedReward:
    return RecomputedReward(f"r/1/{task}/{index}", 1, task, "", stored, recomputed)


REWARDS = [reward(0, 0.5, 0.25), reward(1, None, None), reward(2, 0.25, 0.75), reward(0, 0.125, -0.5, "a, b")]


def test_the_best_by_the_other_reward_come_first_and_groups_as_they_were() -> None:
    assert best_first(REWARDS) == [REWARDS[2], REWARDS[0], REWARDS[1], REWARDS[3]]


def test_the_table_for_programs() -> None:
    mean = compared(REWARDS)
    assert (mean.mean_stored, mean.mean_recomputed) == pytest.approx((0.875 / 3, 0.5 / 3))
    assert csv_text(best_first(REWARDS), mean).splitlines() == [
        "group,candidate,stored_reward,recomputed_reward,rank_correlation",
        "1/x,r/1/x/2,0.25,0.75,",
        "1/x,r/1/x/0,0.5,0.25,",
        "1/x,r/1/x/1,,,",
        '"1/a, b","r/1/a, b/0",0.125,-0.5,',
        f"all,,{mean.mean_stored!r},{mean.mean_recomputed!r},-1.0",
    ]


def test_the_last_line() -> None:
    assert comparison_text(compared(REWARDS), 4) == (
        "mean +0.2917 stored, +0.1667 recomputed, of the 3 of 4 candidates that both score; "
        "rank correlation within groups -1.00 (1 group)"
    )
    assert comparison_text(compared(REWARDS[:2]), 2).endswith("no group in which both tell candidates apart")
    assert comparison_text(compared(REWARDS[1:2]), 1) == "none of 1 candidates is scored by both"


@pytest.mark.parametrize(
    ("text", "named"),
    [("grader_weights: {contains: much}\n", "grader_weights.contains"), ("penalty: 1\n", "token_penalty")],
)
def test_a_file_that_is_wrong_is_told_with_its_field(text: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "reward.yaml"
    file.write_text(text)
    command = [sys.executable, "-m", "tutelage.cli.main", "run", "rewards", "r", "--reward", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"{file}: " in done.stderr
    assert named in done.stderr
    assert "Traceback" not in done.stderr
