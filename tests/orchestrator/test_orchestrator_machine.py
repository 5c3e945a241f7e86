"""What a run asks for next, what it makes of rewards, and when its groups close: examples by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.closing import Closing, GroupPolicy, enough, to_give_up, viable
from orchestrator.estimate import run_seconds, seconds_left
from orchestrator.group_rewards import task_rewards
from orchestrator.machine import Machine
from orchestrator.meter import Meter, share
from orchestrator.plan import Across, Group, Plan
from orchestrator.run_events import (
    Commit,
    CommitDecided,
    Evaluate,
    Evaluated,
    Fact,
    FinishRun,
    GroupWritten,
    PolicyUpdated,
    RunEnded,
    UpdatePolicy,
    WriteGroup,
)
from tutelage.domain.reward import RewardSettings
from tutelage.domain.run import RunState


def facts_of(machine: Machine) -> tuple[object, ...]:
    return machine.groups, machine.results, machine.updated, machine.committed, machine.state, machine.policy_version


def test_a_later_order_gives_the_same_state() -> None:
    plan = Plan(("x", "y"), ("a",), 2, 1, 1, False)
    facts: list[Fact] = [GroupWritten(Group(1, "x"), ("e", "f")), GroupWritten(Group(1, "y"), ("e", "e"))]
    facts += [Evaluated(Evaluate(1, "x", "e", "a", 0), 1.0), Evaluated(Evaluate(1, "x", "f", "a", 0), None)]
    one, two = Machine(plan, "p"), Machine(plan, "p")
    for fact in facts:
        one.feed(fact)
    for fact in (facts[1], facts[0], facts[3], facts[2]):
        two.feed(fact)
    assert facts_of(one) == facts_of(two)
    assert one.outstanding() == (Evaluate(1, "y", "e", "a", 0),)


@pytest.mark.parametrize(
    "fact",
    [
        Evaluated(Evaluate(1, "x", "never written", "a", 0), 1.0),
        Evaluated(Evaluate(1, "x", "e", "stranger", 0), 1.0),
        Evaluated(Evaluate(1, "x", "e", "a", 1), 1.0),
        GroupWritten(Group(2, "x"), ("e", "f")),
        GroupWritten(Group(1, "y"), ("e", "f")),
        GroupWritten(Group(1, "x", "a"), ("e", "f")),
        GroupWritten(Group(1, "x2"), ("e",)),
        PolicyUpdated(1, "p1"),
        CommitDecided("a", "x"),
    ],
)
def test_what_nobody_asked_for_is_refused(fact: Fact) -> None:
    machine = Machine(Plan(("x",), ("a",), 2, 1, 2, True), "p0")
    machine.feed(GroupWritten(Group(1, "x"), ("e", "f")))
    with pytest.raises(ValueError, match=r"asked for|not ready"):
        machine.feed(fact)


def scored_by(plan: Plan, rewards: dict[tuple[str, str, int], float | None], edits: tuple[str, ...]) -> Machine:
    machine = Machine(plan, "p0")
    machine.feed(GroupWritten(Group(1, "x"), edits))
    for (edit, student, repeat), reward in rewards.items():
        machine.feed(Evaluated(Evaluate(1, "x", edit, student, repeat), reward))
    return machine


def test_a_student_that_never_answered_leaves_the_candidate_unscored() -> None:
    rewards: dict[tuple[str, str, int], float | None] = {
        (edit, student, repeat): None if (edit == "f" and student == "b") or (edit == "e" and repeat == 1) else 0.5
        for edit in ("e", "f")
        for student in ("a", "b")
        for repeat in (0, 1)
    }
    machine = scored_by(Plan(("x",), ("a", "b"), 2, 2, 1, False), rewards, ("e", "f"))
    assert machine.rewards(Group(1, "x")) == (0.5, None)


def test_the_reward_over_students_is_their_mean_or_their_worst() -> None:
    rewards: dict[tuple[str, str, int], float | None] = {("e", "a", 0): 1.0, ("e", "b", 0): 0.2}
    for across, expected in ((Across.MEAN, 0.6), (Across.WORST, 0.2)):
        machine = scored_by(Plan(("x",), ("a", "b"), 1, 1, 1, False, across=across), rewards, ("e",))
        assert machine.rewards(Group(1, "x")) == pytest.approx((expected,))


def test_each_student_is_written_for_and_evaluates_its_own() -> None:
    machine = Machine(Plan(("x",), ("a", "b"), 1, 1, 1, False, across=Across.PER_STUDENT), "p0")
    assert [each.group.audience for each in machine.outstanding() if isinstance(each, WriteGroup)] == ["a", "b"]
    assert machine.feed(GroupWritten(Group(1, "x", "a"), ("e",))) == (Evaluate(1, "x", "e", "a", 0),)
    assert machine.feed(GroupWritten(Group(1, "x", "b"), ("e",))) == (Evaluate(1, "x", "e", "b", 0),)
    assert machine.feed(Evaluated(Evaluate(1, "x", "e", "a", 0), 0.1)) == ()
    assert machine.feed(Evaluated(Evaluate(1, "x", "e", "b", 0), 0.9)) == (UpdatePolicy(1, "p0"),)
    assert task_rewards(machine, 1, RewardSettings()) == {"x": (0.1, 0.9)}


def test_groups_are_written_ahead_within_the_staleness_and_not_beyond() -> None:
    machine = Machine(Plan(("x",), ("a",), 1, 1, 3, False, staleness=1), "p0")
    assert machine.outstanding() == (WriteGroup(Group(1, "x"), "p0"), WriteGroup(Group(2, "x"), "p0"))
    machine.feed(GroupWritten(Group(2, "x"), ("e",)))
    machine.feed(Evaluated(Evaluate(2, "x", "e", "a", 0), 0.5))
    machine.feed(GroupWritten(Group(1, "x"), ("e",)))
    assert machine.feed(Evaluated(Evaluate(1, "x", "e", "a", 0), 0.5)) == (UpdatePolicy(1, "p0"),)
    # Round 2 was complete before its turn: its update is due at once.
    assert machine.feed(PolicyUpdated(1, "p1")) == (WriteGroup(Group(3, "x"), "p1"), UpdatePolicy(2, "p1"))


def test_an_ended_run_asks_for_nothing() -> None:
    machine = Machine(Plan(("x",), ("a",), 1, 1, 1, True), "p0")
    assert FinishRun() not in machine.outstanding()
    machine.feed(RunEnded(RunState.CANCELLED))
    assert machine.outstanding() == ()
    machine.feed(RunEnded(RunState.DONE))
    assert machine.state is RunState.CANCELLED


def test_rounds_that_are_added_leave_what_was_committed() -> None:
    machine = Machine(Plan(("x", "y"), ("a",), 1, 1, 1, True), "p0", [("a", "x")])
    for task in ("x", "y"):
        machine.feed(GroupWritten(Group(1, task), (None,)))
    assert machine.feed(PolicyUpdated(1, "p1")) == (Commit("a", "y"),)


def test_a_group_closes_with_enough_and_only_then() -> None:
    plan = Plan(("x",), ("a",), 3, 1, 1, False)
    policy = GroupPolicy(Closing.MINIMUM, 2)
    group = Group(1, "x")
    machine = scored_by(plan, {("e", "a", 0): 1.0}, ("e", "f", "g"))
    last = Evaluate(1, "x", "g", "a", 0)
    assert not enough(policy, machine, group)
    assert to_give_up(policy, machine, group, {last}, True) == ()
    machine.feed(Evaluated(Evaluate(1, "x", "f", "a", 0), 0.0))
    assert to_give_up(policy, machine, group, (), False) == ()
    assert to_give_up(policy, machine, group, {last}, False) == (last,)
    assert to_give_up(policy, machine, group, (), True) == (last,)
    assert to_give_up(GroupPolicy(), machine, group, {last}, True) == ()
    assert viable(policy, machine, group)
    assert not viable(GroupPolicy(Closing.MINIMUM, 3), machine, group)
    assert viable(GroupPolicy(), scored_by(plan, {}, ("e", "f", "g")), group)


def test_busy_is_what_was_used_of_what_there_was() -> None:
    meter = Meter()
    meter.room("student/a", 2, 0.0)
    meter.start("student/a", 1.0)
    meter.start("student/a", 3.0)
    meter.stop("student/a", 5.0)
    assert meter.take(6.0) == {"student/a": (7.0, 12.0)}
    meter.room("student/a", 0, 6.0)
    meter.stop("student/a", 8.0)
    # One slot was in use of a replica that is no longer counted.
    assert meter.take(8.0) == {"student/a": (2.0, 2.0)}
    assert share((7.0, 14.0)) == 0.5
    assert share((0.0, 0.0)) is share(None) is None


def test_the_slowest_student_decides_the_time_left() -> None:
    assert seconds_left(None, {"a": 3}, {"a": 1}) is None
    assert seconds_left(2.0, {"a": 8, "b": 3}, {"a": 4, "b": 1}) == 6.0
    plan = Plan(("x", "y"), ("a", "b"), 4, 1, 2, False)
    assert run_seconds(plan, {"a": 2, "b": 1}, {"a": 3.0, "b": 1.0}, 5.0) == 16 * 3 / 2 + 4 * 5
    # What overlaps is waited for once, and commits of a student come one after the other.
    ahead = replace(plan, staleness=1, commits=True)
    assert run_seconds(ahead, {"a": 2, "b": 1}, {"a": 3.0, "b": 1.0}, 5.0) == 24 + 20 / 2 + 2 * 3.0
    # Strict rounds follow each other however many slots there are; those that overlap share them.
    assert run_seconds(plan, {"a": 99, "b": 99}, {"a": 3.0, "b": 1.0}, 5.0) == 2 * 3 + 4 * 5
    assert run_seconds(replace(plan, staleness=1), {"a": 99, "b": 99}, {"a": 3.0, "b": 1.0}, 5.0) == 20 + 3 / 2
    assert seconds_left(2.0, {"a": 8, "b": 3}, {"a": 99, "b": 99}, rounds=3) == 6.0
    assert run_seconds(plan, {"a": 2, "b": 1}, {"a": 3.0}, 5.0) is None
    assert run_seconds(plan, {"a": 2, "b": 1}, {"a": 3.0, "b": 1.0}, None) is None
