"""Rank correlations of the made quizzes' benchmark, against values worked out by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.made_quizzes import Rewards, correlation, measured, ranks, spearman


def test_equal_values_share_their_ranks() -> None:
    assert list(ranks([0.3, 0.1, 0.3, 0.9])) == [2.5, 1.0, 2.5, 4.0]


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0)
    # 1 - 6 x (0 + 1 + 1) / (3 x 8)
    assert spearman([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0.0


def test_within_documents_their_difficulty_does_not_count() -> None:
    # Within each document the order is turned round; between documents it agrees.
    items = [Rewards((0.1, 0.2), (0.2, 0.1)), Rewards((0.8, 0.9), (0.9, 0.8))]
    assert correlation(items, within=True) == pytest.approx(-1.0)
    assert correlation(items, within=False) == pytest.approx(0.6)
    found = measured(items, within=True, seed=1)
    assert found["low"] <= found["spearman"] <= found["high"]
