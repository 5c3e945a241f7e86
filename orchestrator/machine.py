"""A run as a pure state machine: facts go in, what is still to be done comes out. No I/O, no clock.

The state holds only facts that are in the store, so a restarted orchestrator rebuilds it by feeding the rows again.
What is to be done follows from the facts alone (`outstanding`); `feed` returns what a fact newly made possible:

    WriteGroup of every task -> Evaluate each distinct edit on each student with each seed -> UpdatePolicy
    -> the next round, ... -> Commit task after task on each student -> FinishRun

With a staleness of s the groups of a round are written as soon as the policy is at most s updates behind the one that
strict rounds would write them with; 0 gives strict rounds.

Facts may come in any order and more than once. A second fact about the same thing changes nothing; a fact about
something that was never asked for raises ValueError: a reward is neither lost, doubled nor invented.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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
from tutelage.domain.run import RunPhase, RunState


class Machine:
    """Where a run stands."""

    def __init__(self, plan: Plan, policy_version: str, committed: Iterable[tuple[str, str]] = ()) -> None:
        """`committed` are (student, task) decided before rounds were added to a run that had ended."""
        self.plan = plan
        self.state = RunState.RUNNING
        self.policy_version = policy_version
        """The newest policy."""
        self.updated: dict[int, str] = {}
        self.groups: dict[Group, tuple[str | None, ...]] = {}
        self.results: dict[Evaluate, float | None] = {}
        self.rejected: set[Evaluate] = set()
        """What ended as a rejected edit."""
        self.committed = set(committed)
        self._left: dict[Group, int] = {}
        self._open_groups: dict[int, int] = {}

    @property
    def round(self) -> int:
        """The round that is to be completed next, 1-based; beyond the plan's rounds when all are."""
        return len(self.updated) + 1

    @property
    def horizon(self) -> int:
        """The last round whose groups may be written now."""
        return min(self.plan.rounds, self.round + self.plan.staleness)

    def round_groups(self, round_: int) -> tuple[Group, ...]:
        """The groups of a round, in the order they are written."""
        return tuple(Group(round_, task, who) for task in self.plan.tasks for who in self.plan.audiences)

    def works(self, group: Group) -> tuple[Evaluate, ...]:
        """The distinct evaluations of a written group, in the order of its candidates."""
        distinct = dict.fromkeys(edit for edit in self.groups[group] if edit is not None)
        return tuple(
            Evaluate(group.round, group.task, edit, student, repeat)
            for edit in distinct
            for repeat in range(self.plan.repeats)
            for student in self.plan.readers(group.audience)
        )

    def group_of(self, work: Evaluate) -> Group:
        """The group an evaluation belongs to."""
        return Group(work.round, work.task, work.student if self.plan.across is Across.PER_STUDENT else "")

    def outstanding(self) -> tuple[Decision, ...]:
        """Everything that can be done now, from the facts alone; empty only when the run has ended."""
        if self.state is not RunState.RUNNING:
            return ()
        if self.round > self.plan.rounds:
            return self._closing()
        open_: list[Decision] = []
        for round_ in range(self.round, self.horizon + 1):
            for group in self.round_groups(round_):
                if group not in self.groups:
                    open_.append(WriteGroup(group, self.policy_version))
                else:
                    open_ += [work for work in self.works(group) if work not in self.results]
        if self._complete(self.round):
            open_.append(UpdatePolicy(self.round, self.policy_version))
        return tuple(open_)

    def feed(self, fact: Fact) -> tuple[Decision, ...]:
        """Takes a fact and returns what it newly made possible; ValueError for a fact nobody asked for."""
        match fact:
            case GroupWritten():
                return self._written(fact)
            case Evaluated():
                return self._evaluated(fact)
            case PolicyUpdated():
                return self._policy_updated(fact)
            case CommitDecided(student, task):
                return self._commit_decided(student, task)
            case RunEnded(state):
                if self.state is RunState.RUNNING:
                    self.state = state
                return ()

    def _written(self, fact: GroupWritten) -> tuple[Decision, ...]:
        group = fact.group
        if group in self.groups:
            return ()
        asked = group.task in self.plan.tasks and group.audience in self.plan.audiences
        if not asked or not self.round <= group.round <= self.horizon or len(fact.edits) != self.plan.candidates:
            raise ValueError(f"no such group was asked for: {group}, {len(fact.edits)} candidates")
        self.groups[group] = fact.edits
        new = self.works(group)
        self._left[group] = len(new)
        # Without an edit that could be parsed there is nothing to evaluate, and the group is complete as it stands.
        return self._running(new) or self._group_complete(group)

    def _evaluated(self, fact: Evaluated) -> tuple[Decision, ...]:
        work = fact.work
        if work in self.results:
            return ()
        group = self.group_of(work)
        asked = work.student in self.plan.readers(group.audience) and 0 <= work.repeat < self.plan.repeats
        if not asked or work.edit not in self.groups.get(group, ()):
            raise ValueError(f"no such evaluation was asked for: {work}")
        self.results[work] = fact.reward
        if fact.rejected:
            self.rejected.add(work)
        self._left[group] -= 1
        return self._group_complete(group) if not self._left[group] else ()

    def _group_complete(self, group: Group) -> tuple[Decision, ...]:
        total = len(self.plan.tasks) * len(self.plan.audiences)
        self._open_groups[group.round] = self._open_groups.get(group.round, total) - 1
        if group.round == self.round and self._complete(group.round):
            return self._running((UpdatePolicy(self.round, self.policy_version),))
        return ()

    def _complete(self, round_: int) -> bool:
        return self._open_groups.get(round_) == 0

    def _policy_updated(self, fact: PolicyUpdated) -> tuple[Decision, ...]:
        if fact.round in self.updated:
            return ()
        if fact.round != self.round or not self._complete(fact.round):
            raise ValueError(f"round {fact.round} is not ready for an update")
        before = self.horizon
        self.updated[fact.round] = fact.version
        self.policy_version = fact.version
        if self.round > self.plan.rounds:
            return self._running(self._closing())
        new: list[Decision] = [
            WriteGroup(group, self.policy_version)
            for round_ in range(before + 1, self.horizon + 1)
            for group in self.round_groups(round_)
        ]
        if self._complete(self.round):
            new.append(UpdatePolicy(self.round, self.policy_version))
        return self._running(tuple(new))

    def _commit_decided(self, student: str, task: str) -> tuple[Decision, ...]:
        if (student, task) in self.committed:
            return ()
        if self.round <= self.plan.rounds or student not in self.plan.students or task not in self.plan.tasks:
            raise ValueError(f"no such commit was asked for: student {student!r}, task {task!r}")
        known = set(self._closing())
        self.committed.add((student, task))
        return self._running(tuple(decision for decision in self._closing() if decision not in known))

    def _closing(self) -> tuple[Decision, ...]:
        commits: list[Decision] = []
        if self.plan.commits:
            for student in self.plan.students:
                # One task after the other: each is trained over the version that the one before made.
                left = [task for task in self.plan.tasks if (student, task) not in self.committed]
                commits += [Commit(student, left[0])] if left else []
        return tuple(commits) or (FinishRun(),)

    def _running(self, decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
        return decisions if self.state is RunState.RUNNING else ()

    def rewards(self, group: Group) -> tuple[float | None, ...]:
        """Reward of each candidate of a group by index; None means unscored, so far or for good.

        Over students the mean or the least, over repeats the mean of those that were scored. A student without any
        scored repeat leaves the candidate unscored: a mean over other students than its rivals' would favour whoever
        missed the harder student.
        """
        return tuple(self._reward(group, edit) for edit in self.groups[group])

    def _reward(self, group: Group, edit: str | None) -> float | None:
        if edit is None:
            return self.plan.rejected_reward
        means = []
        for student in self.plan.readers(group.audience):
            scored = self._scored(group, edit, student)
            if not scored:
                return None
            means.append(sum(scored) / len(scored))
        return min(means) if self.plan.across is Across.WORST else sum(means) / len(means)

    def _scored(self, group: Group, edit: str, student: str) -> list[float]:
        each = (
            self.results.get(Evaluate(group.round, group.task, edit, student, repeat))
            for repeat in range(self.plan.repeats)
        )
        return [reward for reward in each if reward is not None]

    def settled(self, group: Group) -> Mapping[int, bool]:
        """By index of a candidate: whether each of its evaluations has ended."""
        return {
            index: edit is None
            or all(
                Evaluate(group.round, group.task, edit, student, repeat) in self.results
                for student in self.plan.readers(group.audience)
                for repeat in range(self.plan.repeats)
            )
            for index, edit in enumerate(self.groups[group])
        }

    @property
    def phase(self) -> RunPhase:
        """What a watcher is told the run is doing."""
        if self.state is not RunState.RUNNING:
            return RunPhase.ENDED
        if self.round > self.plan.rounds:
            return RunPhase.COMMITTING if any(isinstance(each, Commit) for each in self._closing()) else RunPhase.ENDED
        if any(self._left.get(group) for group in self.round_groups(self.round)):
            return RunPhase.EVALUATING
        return RunPhase.UPDATING if self._complete(self.round) else RunPhase.WRITING
