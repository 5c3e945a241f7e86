"""No order of facts loses, doubles or invents a reward, and the machine never waits for nothing."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.closing import Closing, GroupPolicy, enough, to_give_up, viable
from orchestrator.estimate import run_seconds, seconds_left
from orchestrator.machine import (
    Across,
    Commit,
    CommitDecided,
    Decision,
    Evaluate,
    Evaluated,
    Fact,
    FinishRun,
    Group,
    GroupWritten,
    Machine,
    Plan,
    PolicyUpdated,
    RunEnded,
    UpdatePolicy,
    WriteGroup,
)
from orchestrator.meter import Meter, share
from tutelage.domain.run import RunState

plans = st.builds(
    Plan,
    tasks=st.sampled_from([("x",), ("x", "y"), ("x", "y", "z")]),
    students=st.sampled_from([("a",), ("a", "b")]),
    candidates=st.integers(1, 4),
    repeats=st.integers(1, 2),
    rounds=st.integers(1, 3),
    commits=st.booleans(),
    rejected_reward=st.sampled_from([None, -1.0]),
    staleness=st.integers(0, 2),
    across=st.sampled_from(Across),
)


def fact_of(decision: Decision, plan: Plan, draw: st.DrawFn) -> Fact:
    match decision:
        case WriteGroup(group, _):
            edit = st.sampled_from([None, "e1", "e2", "e3"])
            edits = draw(st.lists(edit, min_size=plan.candidates, max_size=plan.candidates))
            return GroupWritten(group, tuple(edits))
        case Evaluate():
            return Evaluated(decision, draw(st.sampled_from([None, 0.0, 0.25, 1.0])))
        case UpdatePolicy(round_, parent):
            return PolicyUpdated(round_, draw(st.sampled_from([parent, f"p{round_}"])))
        case Commit(student, task):
            return CommitDecided(student, task)
    return RunEnded(RunState.DONE)


def told_apart(decisions: tuple[Decision, ...] | list[Decision]) -> set[Decision | Group]:
    """A group that may be written ahead may be written with a newer policy than when that was decided."""
    return {each.group if isinstance(each, WriteGroup) else each for each in decisions}


def facts_of(machine: Machine) -> tuple[object, ...]:
    return machine.groups, machine.results, machine.updated, machine.committed, machine.state, machine.policy_version


def again(plan: Plan, facts: list[Fact]) -> Machine:
    """As it is rebuilt from rows: round by round, commits known from the start."""
    kinds = (GroupWritten, Evaluated, PolicyUpdated)

    def order(fact: Fact) -> tuple[int, int]:
        round_ = fact.group.round if isinstance(fact, GroupWritten) else 0
        round_ = fact.work.round if isinstance(fact, Evaluated) else round_
        return fact.round if isinstance(fact, PolicyUpdated) else round_, kinds.index(type(fact))

    machine = Machine(plan, "p0", [(fact.student, fact.task) for fact in facts if isinstance(fact, CommitDecided)])
    for fact in sorted((fact for fact in facts if isinstance(fact, kinds)), key=order):
        machine.feed(fact)
    return machine


@st.composite
def histories(draw: st.DrawFn) -> tuple[Plan, list[Fact], Machine]:
    """A whole run: open decisions are answered in any order, some facts are told again, some starts are restarts."""
    plan = draw(plans)
    machine = Machine(plan, "p0")
    open_ = list(machine.outstanding())
    facts: list[Fact] = []
    while machine.state is RunState.RUNNING:
        assert open_, "nothing to do, but the run has not ended"
        assert len(told_apart(open_)) == len(open_), "handed out twice"
        assert told_apart(open_) == told_apart(machine.outstanding()), "what was handed out differs from what is open"
        decision = open_.pop(draw(st.integers(0, len(open_) - 1)))
        if isinstance(decision, WriteGroup):
            behind = decision.group.round - 1 - len(machine.updated)
            assert behind <= plan.staleness
        fact = fact_of(decision, plan, draw)
        open_ += machine.feed(fact)
        facts.append(fact)
        if draw(st.booleans()):
            before = copy.deepcopy(facts_of(machine))
            assert machine.feed(draw(st.sampled_from(facts))) == ()
            assert facts_of(machine) == before
        if draw(st.integers(0, 9)) == 0 and machine.state is RunState.RUNNING:
            restarted = again(plan, facts)
            assert facts_of(restarted) == facts_of(machine)
            machine = restarted
            open_ = list(machine.outstanding())
    assert not open_
    return plan, facts, machine


@settings(max_examples=200, deadline=None)
@given(histories())
def test_every_run_ends_with_each_reward_once(history: tuple[Plan, list[Fact], Machine]) -> None:
    plan, facts, end = history
    told = [fact for fact in facts if isinstance(fact, Evaluated)]
    assert len({fact.work for fact in told}) == len(told)
    assert end.results == {fact.work: fact.reward for fact in told}
    assert sorted(end.updated) == list(range(1, plan.rounds + 1))
    assert len(end.groups) == plan.rounds * len(plan.tasks) * len(plan.audiences)
    assert len(end.committed) == (len(plan.students) * len(plan.tasks) if plan.commits else 0)
    for group, edits in end.groups.items():
        rewards = end.rewards(group)
        assert len(rewards) == plan.candidates
        for edit, reward in zip(edits, rewards, strict=True):
            own = [fact.reward for fact in told if (end.group_of(fact.work), fact.work.edit) == (group, edit)]
            if edit is None:
                assert not own
                assert reward == plan.rejected_reward
            else:
                assert len(own) == len(plan.readers(group.audience)) * plan.repeats
                scored = [value for value in own if value is not None]
                assert (reward is None) if not scored else (reward is None or min(scored) <= reward <= max(scored))
                if len(scored) == len(own) and plan.across is not Across.WORST:
                    assert reward == pytest.approx(sum(own) / len(own))


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
        assert machine.rewards(Group(1, "x")) == (pytest.approx(expected),)


def test_each_student_is_written_for_and_evaluates_its_own() -> None:
    machine = Machine(Plan(("x",), ("a", "b"), 1, 1, 1, False, across=Across.PER_STUDENT), "p0")
    assert [each.group.audience for each in machine.outstanding() if isinstance(each, WriteGroup)] == ["a", "b"]
    assert machine.feed(GroupWritten(Group(1, "x", "a"), ("e",))) == (Evaluate(1, "x", "e", "a", 0),)
    assert machine.feed(GroupWritten(Group(1, "x", "b"), ("e",))) == (Evaluate(1, "x", "e", "b", 0),)
    assert machine.feed(Evaluated(Evaluate(1, "x", "e", "a", 0), 0.1)) == ()
    assert machine.feed(Evaluated(Evaluate(1, "x", "e", "b", 0), 0.9)) == (UpdatePolicy(1, "p0"),)
    assert machine.task_rewards(1, "x") == (0.1, 0.9)


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
    assert run_seconds(plan, {"a": 2, "b": 1}, {"a": 3.0}, 5.0) is None
    assert run_seconds(plan, {"a": 2, "b": 1}, {"a": 3.0, "b": 1.0}, None) is None
