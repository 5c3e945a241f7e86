"""How long one waits before another try."""

from __future__ import annotations

from orchestrator.backoff import backoff_s


def test_waits_double_up_to_the_longest() -> None:
    assert [backoff_s(n, 0.5, 2, 30) for n in (1, 2, 3, 7, 8, 100000)] == [0.5, 1, 2, 30, 30, 30]
