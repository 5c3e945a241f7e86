"""How alike two rewards rank: within groups, of what both score, ties sharing their ranks."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.domain.recomputed_reward import RecomputedReward, RewardComparison, compared, rank_correlation


def of(task: str, *pairs: tuple[float | None, float | None], student: str = "") -> list[RecomputedReward]:
    return [RecomputedReward(f"r/1/{task}/{index}", 1, task, student, *pair) for index, pair in enumerate(pairs)]


def test_ranks_by_hand() -> None:
    assert rank_correlation([1, 2, 3], [10, 20, 300]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3], [0.3, 0.2, 0.1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    # Ranks 1, 2.5, 2.5 beside 1, 2, 3.
    assert rank_correlation([0, 1, 1], [1, 2, 3]) == pytest.approx(1.5 / (1.5 * 2) ** 0.5)
    # Equal but for the last digit of a mean.
    assert rank_correlation([1, 2], [0.3, 0.1 + 0.2]) is None
    assert rank_correlation([1], [2]) is None


def test_groups_are_ranked_by_themselves() -> None:
    rewards = [*of("x", (0.0, 10.0), (1.0, 11.0)), *of("y", (5.0, 1.0), (6.0, 0.0)), *of("z", (1.0, 1.0))]
    assert asdict(compared(rewards)) == pytest.approx(asdict(RewardComparison(5, 2.6, 4.6, 0.0, 2)))


def test_only_what_both_score_is_compared() -> None:
    rewards = of("x", (1.0, None), (None, 5.0), (2.0, 3.0), (None, None))
    assert compared(rewards) == RewardComparison(1, 2.0, 3.0, None, 0)
    assert compared(rewards[:2]) == compared([]) == RewardComparison(0, None, None, None, 0)


def test_candidates_of_two_students_are_two_groups() -> None:
    rewards = [*of("x", (0.0, 0.0), (1.0, 1.0), student="a"), *of("x", (0.0, 1.0), (1.0, 0.0), student="b")]
    assert {each.group for each in rewards} == {"1/x/a", "1/x/b"}
    assert compared(rewards).rank_correlation == 0.0


@given(st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=1, max_size=12))
def test_a_correlation_is_symmetric_and_bounded(pairs: list[tuple[int, int]]) -> None:
    one, other = zip(*pairs, strict=True)
    found = rank_correlation(one, other)
    assert found == rank_correlation(other, one)
    assert (found is None) == (len(set(one)) == 1 or len(set(other)) == 1)
    assert found is None or abs(found) <= 1 + 1e-12
    assert rank_correlation(one, one) in (None, pytest.approx(1.0))
