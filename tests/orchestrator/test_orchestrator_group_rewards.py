"""Rewards that updates learn from: as the machine's, shrunken where asked, and the same from stored outcomes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.group_rewards import Rewards, group_rewards, measured, task_rewards
from orchestrator.machine import Machine
from orchestrator.plan import Across, Group, Plan
from orchestrator.run_config import RunConfig
from orchestrator.run_events import Evaluate, Evaluated, GroupWritten
from tutelage.domain.reward import RewardSettings

X, Y = Group(1, "x"), Group(1, "y")


def machine_of(rewards: dict[tuple[str, str, str, int], float | None], plan: Plan, *edits: str | None) -> Machine:
    machine = Machine(plan, "p0")
    for task in plan.tasks:
        machine.feed(GroupWritten(Group(1, task), edits))
    for (task, edit, student, repeat), reward in rewards.items():
        rejected = reward is not None and reward == plan.rejected_reward
        machine.feed(Evaluated(Evaluate(1, task, edit, student, repeat), reward, rejected))
    return machine


def shrunken_rewards(machine: Machine, groups: list[Group]) -> Mapping[Group, Rewards]:
    settings = RewardSettings(rejected_reward=machine.plan.rejected_reward, shrink=True)
    return group_rewards(machine, groups, measured(machine, groups), settings)


def test_by_hand() -> None:
    # Between 16, within 2 of two repeats: seven eighths of what a mean is off its group's middle are signal.
    rewards = dict(zip([("x", e, "a", r) for e in "ef" for r in (0, 1)], (1.0, 3.0, 5.0, 7.0), strict=True))
    machine = machine_of(dict(rewards), Plan(("x",), ("a",), 2, 2, 1, False), "e", "f")
    assert machine.rewards(X) == (2.0, 6.0)
    assert shrunken_rewards(machine, [X])[X] == pytest.approx((2.25, 5.75))


def test_a_report_shows_what_the_update_learns_from() -> None:
    rewards = dict(zip([("x", e, "a", r) for e in "ef" for r in (0, 1)], (1.0, 3.0, 5.0, 7.0), strict=True))
    machine = machine_of(dict(rewards), Plan(("x",), ("a",), 2, 2, 1, False), "e", "f")
    assert task_rewards(machine, 1, RewardSettings(shrink=True))["x"] == pytest.approx((2.25, 5.75))
    assert task_rewards(machine, 1, RewardSettings()) == {"x": (2.0, 6.0)}


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


def test_a_students_rejections_are_certain_and_no_noise() -> None:
    rewards = dict(zip([("x", e, "a", r) for e in "ef" for r in (0, 1)], (1.0, 3.0, 5.0, 7.0), strict=True))
    rewards |= {("x", "g", "a", 0): -9.0, ("x", "g", "a", 1): -9.0}
    machine = machine_of(dict(rewards), Plan(("x",), ("a",), 3, 2, 1, False, rejected_reward=-9.0), "e", "f", "g")
    # The others as they are without it, worked out above.
    *others, rejected = shrunken_rewards(machine, [X])[X]
    assert others == pytest.approx([2.25, 5.75])
    assert rejected == -9.0


REWARD = st.one_of(st.none(), st.just(-1.0), st.floats(0, 1))


@given(st.lists(REWARD, min_size=8, max_size=8), st.sampled_from([Across.MEAN, Across.WORST]))
def test_an_update_learns_from_the_machines_rewards(each: list[float | None], across: Across) -> None:
    keys = [("x", edit, student, repeat) for edit in "ef" for student in "ab" for repeat in (0, 1)]
    plan = Plan(("x",), ("a", "b"), 3, 2, 1, False, rejected_reward=-1.0, across=across)
    machine = machine_of(dict(zip(keys, each, strict=True)), plan, "e", "f", None)
    settings = RewardSettings(rejected_reward=-1.0)
    found = group_rewards(machine, [X], measured(machine, [X]), settings)[X]
    assert found == tuple(value if value is None else pytest.approx(value) for value in machine.rewards(X))


def test_a_runs_reward_settings_reach_the_domain() -> None:
    config = RunConfig.model_validate({"students": ["a"], "reward": {"token_penalty": 0.02, "shrink": True}})
    assert config.reward_settings() == RewardSettings(token_penalty=0.02, shrink=True)
