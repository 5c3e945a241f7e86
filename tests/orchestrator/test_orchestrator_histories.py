"""No order of facts loses, doubles or invents a reward, or leaves a run with nothing to do that has not ended.

A history is a whole run: what is handed out is answered in any order, attempts fail, groups close early, rounds are
added, orchestrators are restarted (as after a pause), and some runs are cancelled in the middle.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from orchestrator.closing import Closing, GroupPolicy, enough, to_give_up, viable
from orchestrator.machine import Machine
from orchestrator.plan import Across, Group, Plan
from orchestrator.run_events import (
    Commit,
    CommitDecided,
    Decision,
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
policies = st.one_of(
    st.just(GroupPolicy()),
    st.just(GroupPolicy(Closing.FAIL_FAST)),
    st.builds(GroupPolicy, st.just(Closing.MINIMUM), st.integers(1, 4), st.sampled_from([None, 20.0])),
)


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


@dataclass
class History:
    """What happened in a run, and what is still open."""

    plan: Plan
    policy: GroupPolicy
    draw: st.DrawFn
    facts: list[Fact] = field(default_factory=list)
    given_up: list[Evaluate] = field(default_factory=list)
    extensions: int = 0

    def __post_init__(self) -> None:
        self.machine = Machine(self.plan, "p0")
        self.open = list(self.machine.outstanding())
        self.failed: set[Evaluate] = set()
        self.waited: set[Group] = set()

    def chance(self, of: int) -> bool:
        return self.draw(st.integers(0, of - 1)) == of - 1

    def run(self) -> None:
        """To its end."""
        while self.machine.state is RunState.RUNNING:
            assert self.open, "nothing to do, but the run has not ended"
            assert len(told_apart(self.open)) == len(self.open), "handed out twice"
            assert told_apart(self.open) == told_apart(self.machine.outstanding()), "open is not what was handed out"
            decision = self.open.pop(self.draw(st.integers(0, len(self.open) - 1)))
            if isinstance(decision, WriteGroup):
                assert decision.group.round - 1 - len(self.machine.updated) <= self.plan.staleness
            if isinstance(decision, Evaluate) and decision not in self.failed and self.chance(4):
                # Its attempt failed; it is tried again, unless its group does not need it.
                self.failed.add(decision)
                self.open.append(decision)
            else:
                self.tell(self.fact_of(decision))
            self.close_groups()
            self.sometimes()

    def tell(self, fact: Fact) -> None:
        self.open += self.machine.feed(fact)
        self.facts.append(fact)
        fails_fast = self.policy.close is Closing.FAIL_FAST and isinstance(fact, Evaluated) and fact.reward is None
        if fails_fast and self.machine.state is RunState.RUNNING:
            self.end(RunState.FAILED)

    def fact_of(self, decision: Decision) -> Fact:
        match decision:
            case WriteGroup(group, _):
                edits = st.lists(
                    st.sampled_from([None, "e1", "e2", "e3"]),
                    min_size=self.plan.candidates,
                    max_size=self.plan.candidates,
                )
                return GroupWritten(group, tuple(self.draw(edits)))
            case Evaluate():
                return Evaluated(decision, self.draw(st.sampled_from([None, 0.0, 0.25, 1.0])))
            case UpdatePolicy(round_, parent):
                return PolicyUpdated(round_, self.draw(st.sampled_from([parent, f"p{round_}"])))
            case Commit(student, task):
                return CommitDecided(student, task)
        return RunEnded(RunState.DONE)

    def close_groups(self) -> None:
        """Gives up what the groups that have enough need not wait for, as a runner does after each change."""
        for group in list(self.machine.groups):
            if self.policy.wait_s is not None and enough(self.policy, self.machine, group) and self.chance(3):
                self.waited.add(group)
            for work in to_give_up(self.policy, self.machine, group, self.failed, group in self.waited):
                assert self.policy.close is Closing.MINIMUM
                assert group in self.waited or work in self.failed
                # Neither twice nor after it was scored.
                self.open.remove(work)
                self.given_up.append(work)
                self.tell(Evaluated(work, None))

    def sometimes(self) -> None:
        if bool(self.facts) and self.draw(st.booleans()):
            before = copy.deepcopy(facts_of(self.machine))
            assert self.machine.feed(self.draw(st.sampled_from(self.facts))) == ()
            assert facts_of(self.machine) == before
        if self.machine.state is RunState.RUNNING and self.chance(10):
            self.restart()
        if self.machine.state in (RunState.RUNNING, RunState.DONE) and self.extensions < 2 and self.chance(10):
            self.extend()
        if self.machine.state is RunState.RUNNING and self.chance(60):
            self.end(self.draw(st.sampled_from([RunState.CANCELLED, RunState.FAILED])))

    def restart(self) -> None:
        """Of what was not stored nothing is known any more."""
        restarted = again(self.plan, self.facts)
        assert facts_of(restarted) == facts_of(self.machine)
        self.machine = restarted
        self.waited.clear()
        self.open = list(self.machine.outstanding())

    def extend(self) -> None:
        """Rounds are added, also to a run that was done; of its commits those that were made stay decided."""
        self.extensions += 1
        self.plan = replace(self.plan, rounds=self.plan.rounds + self.draw(st.integers(1, 2)))
        self.facts = [
            fact
            for fact in self.facts
            if not isinstance(fact, RunEnded) and not (isinstance(fact, CommitDecided) and self.draw(st.booleans()))
        ]
        self.machine = again(self.plan, self.facts)
        self.waited.clear()
        self.open = list(self.machine.outstanding())

    def end(self, state: RunState) -> None:
        """Ended in the middle: what was under way may still be told, and leads to nothing."""
        under_way, self.open = self.open, []
        self.facts.append(RunEnded(state))
        assert self.machine.feed(self.facts[-1]) == ()
        for decision in under_way:
            if not isinstance(decision, FinishRun) and self.draw(st.booleans()):
                self.facts.append(self.fact_of(decision))
                assert self.machine.feed(self.facts[-1]) == (), "an ended run asks for more"
        assert self.machine.outstanding() == ()
        assert self.machine.state is state


@st.composite
def histories(draw: st.DrawFn) -> History:
    plan = draw(plans)
    history = History(plan, draw(policies), draw)
    history.run()
    assert not history.open
    return history


@settings(max_examples=300, deadline=None)
@given(histories())
def test_every_run_ends_with_each_reward_once(history: History) -> None:
    plan, end = history.plan, history.machine
    told = [fact for fact in history.facts if isinstance(fact, Evaluated)]
    assert len({fact.work for fact in told}) == len(told)
    assert end.results == {fact.work: fact.reward for fact in told}
    event(f"{end.state}, extended {history.extensions} times, {'some' if history.given_up else 'none'} given up")
    if end.state is RunState.DONE:
        assert sorted(end.updated) == list(range(1, plan.rounds + 1))
        assert len(end.groups) == plan.rounds * len(plan.tasks) * len(plan.audiences)
        assert len(end.committed) == (len(plan.students) * len(plan.tasks) if plan.commits else 0)
    for work in history.given_up:
        assert end.results[work] is None
        assert viable(history.policy, end, end.group_of(work)), "closed without enough"
    for group, edits in end.groups.items():
        rewards = end.rewards(group)
        assert len(rewards) == plan.candidates
        for edit, reward in zip(edits, rewards, strict=True):
            own = [fact.reward for fact in told if (end.group_of(fact.work), fact.work.edit) == (group, edit)]
            if edit is None:
                assert not own
                assert reward == plan.rejected_reward
                continue
            asked = len(plan.readers(group.audience)) * plan.repeats
            assert len(own) == asked or (end.state is not RunState.DONE and len(own) < asked)
            scored = [value for value in own if value is not None]
            assert (reward is None) if not scored else (reward is None or min(scored) <= reward <= max(scored))
            if len(scored) == asked and plan.across is not Across.WORST:
                assert reward == pytest.approx(sum(scored) / len(scored))
