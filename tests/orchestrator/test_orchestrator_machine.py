"""No order of facts loses, doubles or invents a reward, and the machine never waits for nothing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.dispatch import assign, backoff_s, seconds_left
from orchestrator.machine import (
    Commit,
    CommitDecided,
    Decision,
    Evaluate,
    Evaluated,
    Fact,
    FinishRun,
    GroupWritten,
    Plan,
    PolicyUpdated,
    Progress,
    RunEnded,
    UpdatePolicy,
    WriteGroup,
    apply,
    begin,
    candidate_rewards,
    outstanding,
    step,
)
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
)


def fact_of(decision: Decision, plan: Plan, draw: st.DrawFn) -> Fact:
    match decision:
        case WriteGroup(round_, task, _):
            edit = st.sampled_from([None, "e1", "e2", "e3"])
            edits = draw(st.lists(edit, min_size=plan.candidates, max_size=plan.candidates))
            return GroupWritten(round_, task, tuple(edits))
        case Evaluate():
            return Evaluated(decision, draw(st.sampled_from([None, 0.0, 0.25, 1.0])))
        case UpdatePolicy(round_, parent):
            return PolicyUpdated(round_, draw(st.sampled_from([parent, f"p{round_}"])))
        case Commit(student, task):
            return CommitDecided(student, task)
    return RunEnded(RunState.DONE)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Plan, list[Fact], Progress]:
    """A whole run: open decisions are answered in any order, some facts are told again, some starts are restarts."""
    plan = draw(plans)
    now = begin("p0")
    open_ = list(outstanding(plan, now))
    facts: list[Fact] = []
    while now.state is RunState.RUNNING:
        assert open_, "nothing to do, but the run has not ended"
        assert set(open_) == set(outstanding(plan, now)), "what was handed out differs from what is open"
        decision = open_.pop(draw(st.integers(0, len(open_) - 1)))
        fact = fact_of(decision, plan, draw)
        before = now
        now, new = step(plan, now, fact)
        assert now != before
        assert not set(new) & set(open_), "handed out twice"
        open_ += new
        facts.append(fact)
        if draw(st.booleans()):
            again = draw(st.sampled_from(facts))
            assert step(plan, now, again) == (now, ())
        if draw(st.integers(0, 9)) == 0:
            restarted = begin("p0")
            for each in facts:
                restarted = apply(plan, restarted, each)
            assert restarted == now
            open_ = list(outstanding(plan, restarted))
    assert not open_
    return plan, facts, now


@settings(max_examples=150, deadline=None)
@given(histories())
def test_every_run_ends_with_each_reward_once(history: tuple[Plan, list[Fact], Progress]) -> None:
    plan, facts, end = history
    told = [fact for fact in facts if isinstance(fact, Evaluated)]
    assert len({fact.work for fact in told}) == len(told)
    assert end.results == {fact.work: fact.reward for fact in told}
    assert sorted(end.updated) == list(range(1, plan.rounds + 1))
    assert len(end.groups) == plan.rounds * len(plan.tasks)
    assert len(end.committed) == (len(plan.students) * len(plan.tasks) if plan.commits else 0)
    for (round_, task), edits in end.groups.items():
        rewards = candidate_rewards(plan, end, round_, task)
        assert len(rewards) == plan.candidates
        for edit, reward in zip(edits, rewards, strict=True):
            own = [
                fact.reward
                for fact in told
                if (fact.work.round, fact.work.task, fact.work.edit) == (round_, task, edit)
            ]
            if edit is None:
                assert not own
                assert reward == plan.rejected_reward
            else:
                assert len(own) == len(plan.students) * plan.repeats
                scored = [value for value in own if value is not None]
                assert (reward is None) if not scored else (reward is None or min(scored) <= reward <= max(scored))
                if len(scored) == len(own):
                    assert reward == pytest.approx(sum(own) / len(own))


def test_a_later_order_gives_the_same_state() -> None:
    plan = Plan(("x", "y"), ("a",), 2, 1, 1, False)
    facts: list[Fact] = [GroupWritten(1, "x", ("e", "f")), GroupWritten(1, "y", ("e", "e"))]
    facts += [Evaluated(Evaluate(1, "x", "e", "a", 0), 1.0), Evaluated(Evaluate(1, "x", "f", "a", 0), None)]
    one, two = begin("p"), begin("p")
    for fact in facts:
        one = apply(plan, one, fact)
    for fact in (facts[1], facts[0], facts[3], facts[2]):
        two = apply(plan, two, fact)
    assert one == two
    assert outstanding(plan, one) == (Evaluate(1, "y", "e", "a", 0),)


@pytest.mark.parametrize(
    "fact",
    [
        Evaluated(Evaluate(1, "x", "never written", "a", 0), 1.0),
        Evaluated(Evaluate(1, "x", "e", "stranger", 0), 1.0),
        Evaluated(Evaluate(1, "x", "e", "a", 1), 1.0),
        GroupWritten(2, "x", ("e", "f")),
        GroupWritten(1, "y", ("e", "f")),
        GroupWritten(1, "x2", ("e",)),
        PolicyUpdated(1, "p1"),
        CommitDecided("a", "x"),
    ],
)
def test_what_nobody_asked_for_is_refused(fact: Fact) -> None:
    plan = Plan(("x",), ("a",), 2, 1, 2, True)
    now = apply(plan, begin("p0"), GroupWritten(1, "x", ("e", "f")))
    with pytest.raises(ValueError, match=r"asked for|not ready"):
        apply(plan, now, fact)


def test_a_student_that_never_answered_leaves_the_candidate_unscored() -> None:
    plan = Plan(("x",), ("a", "b"), 2, 2, 1, False)
    now = apply(plan, begin("p0"), GroupWritten(1, "x", ("e", "f")))
    for edit in ("e", "f"):
        for student in ("a", "b"):
            for repeat in (0, 1):
                lost = (edit == "f" and student == "b") or (edit == "e" and repeat == 1)
                now = apply(plan, now, Evaluated(Evaluate(1, "x", edit, student, repeat), None if lost else 0.5))
    assert candidate_rewards(plan, now, 1, "x") == (0.5, None)


def test_an_ended_run_asks_for_nothing() -> None:
    plan = Plan(("x",), ("a",), 1, 1, 1, True)
    ended = apply(plan, begin("p0"), RunEnded(RunState.CANCELLED))
    assert outstanding(plan, ended) == ()
    assert apply(plan, ended, RunEnded(RunState.DONE)).state is RunState.CANCELLED
    assert FinishRun() not in outstanding(plan, begin("p0"))


@given(st.lists(st.sampled_from("abc"), max_size=20), st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)))
def test_dispatch_fills_free_slots_in_order(students: list[str], free: dict[str, int]) -> None:
    waiting = [Evaluate(1, "x", f"e{index}", student, 0) for index, student in enumerate(students)]
    chosen = assign(waiting, free)
    for student in "abc":
        own = [work for work in waiting if work.student == student]
        assert [work for work in chosen if work.student == student] == own[: free.get(student, 0)]


def test_waits_double_up_to_the_longest() -> None:
    assert [backoff_s(n, 0.5, 2, 30) for n in (1, 2, 3, 7, 8, 100000)] == [0.5, 1, 2, 30, 30, 30]


def test_the_slowest_student_decides_the_time_left() -> None:
    assert seconds_left(None, {"a": 3}, {"a": 1}) is None
    assert seconds_left(2.0, {"a": 8, "b": 3}, {"a": 4, "b": 1}) == 6.0
