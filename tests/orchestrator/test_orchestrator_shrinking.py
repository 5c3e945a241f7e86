"""Shrunken rewards: as the mean where nothing is known of the noise, nearer to each other where much of it is."""

from __future__ import annotations

import pytest

from orchestrator.machine import Machine
from orchestrator.plan import Across, Group, Plan
from orchestrator.run_config import RunConfig
from orchestrator.run_events import Evaluate, Evaluated, GroupWritten
from orchestrator.shrinking import shrunken_rewards
from tutelage.domain.reward import RewardSettings

X, Y = Group(1, "x"), Group(1, "y")


def machine_of(rewards: dict[tuple[str, str, str, int], float | None], plan: Plan, *edits: str | None) -> Machine:
    machine = Machine(plan, "p0")
    for task in plan.tasks:
        machine.feed(GroupWritten(Group(1, task), edits))
    for (task, edit, student, repeat), reward in rewards.items():
        machine.feed(Evaluated(Evaluate(1, task, edit, student, repeat), reward))
    return machine


def test_by_hand() -> None:
    # Between 16, within 2 of two repeats: seven eighths of what a mean is off its group's middle are signal.
    rewards = dict(zip([("x", e, "a", r) for e in "ef" for r in (0, 1)], (1.0, 3.0, 5.0, 7.0), strict=True))
    machine = machine_of(dict(rewards), Plan(("x",), ("a",), 2, 2, 1, False), "e", "f")
    assert machine.rewards(X) == (2.0, 6.0)
    assert shrunken_rewards(machine, [X])[X] == pytest.approx((2.25, 5.75))


def test_without_repeats_it_is_the_mean() -> None:
    rewards = {("x", "e", "a", 0): 0.1, ("x", "f", "a", 0): 0.5, ("x", "e", "b", 0): 0.3, ("x", "f", "b", 0): -1.0}
    for across in (Across.MEAN, Across.WORST):
        machine = machine_of(dict(rewards), Plan(("x",), ("a", "b"), 2, 1, 1, False, across=across), "e", "f")
        assert shrunken_rewards(machine, [X]) == {X: pytest.approx(machine.rewards(X))}


def test_rejected_unscored_and_equal_candidates() -> None:
    values = {("x", "e"): (0.0, 1.0), ("x", "f"): (None, None), ("y", "e"): (0.0, 0.5), ("y", "f"): (2.0, 2.5)}
    rewards = {(task, edit, "a", r): pair[r] for (task, edit), pair in values.items() for r in (0, 1)}
    plan = Plan(("x", "y"), ("a",), 4, 2, 1, False, rejected_reward=-0.5)
    machine = machine_of(rewards, plan, "e", "e", "f", None)
    found = shrunken_rewards(machine, [X, Y])
    assert found[X] == (0.5, 0.5, None, -0.5)
    assert found[Y][0] == found[Y][1]
    assert machine.rewards(Y)[0] < found[Y][0] < found[Y][2] < machine.rewards(Y)[2]  # type: ignore[operator]


def test_a_runs_reward_settings_reach_the_domain() -> None:
    config = RunConfig.model_validate({"students": ["a"], "reward": {"token_penalty": 0.02, "shrink": True}})
    assert config.reward_settings() == RewardSettings(token_penalty=0.02, shrink=True)
