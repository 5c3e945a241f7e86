"""How long one waits before another try, and how many tries there may be."""

from __future__ import annotations

from orchestrator.backoff import RetryBudget, backoff_s


def test_waits_double_up_to_the_longest() -> None:
    assert [backoff_s(n, 0.5, 2, 30) for n in (1, 2, 3, 7, 8, 100000)] == [0.5, 1, 2, 30, 30, 30]


def test_a_budget_is_spent_by_failures_and_filled_by_successes() -> None:
    budget = RetryBudget(4)
    for _ in range(2):
        assert budget.left
        budget.failed()
    assert not budget.left
    for _ in range(5):
        budget.succeeded()
    assert budget.left
