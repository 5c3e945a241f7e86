"""A run as a pure state machine: facts go in, what is still to be done comes out. No I/O, no clock.

The state holds only facts that are in the store, so a restarted orchestrator rebuilds it by feeding the rows again.
What is to be done follows from the state alone (`outstanding`); `step` returns what a fact newly made possible:

    WriteGroup of every task -> Evaluate each distinct edit on each student with each seed -> UpdatePolicy
    -> the next round, ... -> Commit task after task on each student -> FinishRun

Facts may come in any order and more than once. A second fact about the same thing changes nothing; a fact about
something that was never asked for raises ValueError: a reward is neither lost, doubled nor invented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from tutelage.domain.run import RunPhase, RunState


@dataclass(frozen=True)
class Plan:
    """What was asked for; fixed when the run starts."""

    tasks: tuple[str, ...]
    students: tuple[str, ...]
    candidates: int
    repeats: int
    rounds: int
    commits: bool
    rejected_reward: float | None = None

    @property
    def evaluations(self) -> int:
        """Rewards the whole run can give: one a (candidate, student, repeat)."""
        return self.rounds * len(self.tasks) * self.candidates * len(self.students) * self.repeats


# Decisions: what is to be done.
@dataclass(frozen=True)
class WriteGroup:
    round: int
    task: str
    policy_version: str


@dataclass(frozen=True)
class Evaluate:
    """One evaluation of one edit; candidates of a group with equal edits share it."""

    round: int
    task: str
    edit: str
    """Content hash of the self-edit."""
    student: str
    repeat: int


@dataclass(frozen=True)
class UpdatePolicy:
    round: int
    parent_version: str


@dataclass(frozen=True)
class Commit:
    """Gate the best edit of a task and make it permanent in a student, or record why not."""

    student: str
    task: str


@dataclass(frozen=True)
class FinishRun:
    pass


Decision = WriteGroup | Evaluate | UpdatePolicy | Commit | FinishRun


# Facts: what has happened and is stored.
@dataclass(frozen=True)
class GroupWritten:
    """All candidates of a task: by index the content hash of the edit, or None for a rejected one."""

    round: int
    task: str
    edits: tuple[str | None, ...]


@dataclass(frozen=True)
class Evaluated:
    """An evaluation ended; None means it earned nothing and counts as unscored."""

    work: Evaluate
    reward: float | None


@dataclass(frozen=True)
class PolicyUpdated:
    round: int
    version: str


@dataclass(frozen=True)
class CommitDecided:
    student: str
    task: str


@dataclass(frozen=True)
class RunEnded:
    state: RunState


Fact = GroupWritten | Evaluated | PolicyUpdated | CommitDecided | RunEnded


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    round: int
    policy_version: str
    groups: Mapping[tuple[int, str], tuple[str | None, ...]] = field(default_factory=lambda: MappingProxyType({}))
    results: Mapping[Evaluate, float | None] = field(default_factory=lambda: MappingProxyType({}))
    updated: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    committed: frozenset[tuple[str, str]] = frozenset()
    state: RunState = RunState.RUNNING


def begin(policy_version: str) -> Progress:
    """The state of a run nothing has happened in."""
    return Progress(1, policy_version)


def works(plan: Plan, round_: int, task: str, edits: tuple[str | None, ...]) -> tuple[Evaluate, ...]:
    """The distinct evaluations of a group, in the order of its candidates."""
    distinct = dict.fromkeys(edit for edit in edits if edit is not None)
    return tuple(
        Evaluate(round_, task, edit, student, repeat)
        for edit in distinct
        for repeat in range(plan.repeats)
        for student in plan.students
    )


def outstanding(plan: Plan, now: Progress) -> tuple[Decision, ...]:
    """Everything that can be done now; empty only when the run has ended."""
    if now.state is not RunState.RUNNING:
        return ()
    if now.round <= plan.rounds:
        open_: list[Decision] = []
        for task in plan.tasks:
            edits = now.groups.get((now.round, task))
            if edits is None:
                open_.append(WriteGroup(now.round, task, now.policy_version))
            else:
                open_ += [work for work in works(plan, now.round, task, edits) if work not in now.results]
        return tuple(open_) or (UpdatePolicy(now.round, now.policy_version),)
    commits: list[Decision] = []
    if plan.commits:
        for student in plan.students:
            # One task after the other: each is trained over the version that the one before made.
            left = [task for task in plan.tasks if (student, task) not in now.committed]
            commits += [Commit(student, left[0])] if left else []
    return tuple(commits) or (FinishRun(),)


def apply(plan: Plan, now: Progress, fact: Fact) -> Progress:
    """The state after a fact; unchanged when the fact is known. ValueError for a fact nobody asked for."""
    match fact:
        case GroupWritten(round_, task, edits):
            if (round_, task) in now.groups:
                return now
            if round_ != now.round or task not in plan.tasks or len(edits) != plan.candidates:
                raise ValueError(f"no such group was asked for: round {round_}, task {task!r}, {len(edits)} candidates")
            return replace(now, groups={**now.groups, (round_, task): edits})
        case Evaluated(work, reward):
            if work in now.results:
                return now
            edits = now.groups.get((work.round, work.task), ())
            if work.edit not in edits or work.student not in plan.students or not 0 <= work.repeat < plan.repeats:
                raise ValueError(f"no such evaluation was asked for: {work}")
            return replace(now, results={**now.results, work: reward})
        case PolicyUpdated(round_, version):
            if round_ in now.updated:
                return now
            if UpdatePolicy(round_, now.policy_version) not in outstanding(plan, now):
                raise ValueError(f"round {round_} is not ready for an update")
            updated = {**now.updated, round_: version}
            return replace(now, updated=updated, round=now.round + 1, policy_version=version)
        case CommitDecided(student, task):
            if (student, task) in now.committed:
                return now
            if now.round <= plan.rounds or student not in plan.students or task not in plan.tasks:
                raise ValueError(f"no such commit was asked for: student {student!r}, task {task!r}")
            return replace(now, committed=now.committed | {(student, task)})
        case RunEnded(state):
            return now if now.state is not RunState.RUNNING else replace(now, state=state)


def step(plan: Plan, now: Progress, fact: Fact) -> tuple[Progress, tuple[Decision, ...]]:
    """The state after a fact, and what it newly made possible."""
    after = apply(plan, now, fact)
    if after is now:
        return now, ()
    known = set(outstanding(plan, now))
    return after, tuple(decision for decision in outstanding(plan, after) if decision not in known)


def candidate_rewards(plan: Plan, now: Progress, round_: int, task: str) -> tuple[float | None, ...]:
    """Reward of each candidate of a group by index; None means unscored.

    The mean over students of the mean over scored repeats. A student without any scored repeat leaves the candidate
    unscored: a mean over other students than its rivals' would favour whoever missed the harder student.
    """
    edits = now.groups[(round_, task)]
    return tuple(_reward(plan, now, round_, task, edit) for edit in edits)


def _reward(plan: Plan, now: Progress, round_: int, task: str, edit: str | None) -> float | None:
    if edit is None:
        return plan.rejected_reward
    means = []
    for student in plan.students:
        each = [now.results.get(Evaluate(round_, task, edit, student, repeat)) for repeat in range(plan.repeats)]
        scored = [reward for reward in each if reward is not None]
        if not scored:
            return None
        means.append(sum(scored) / len(scored))
    return sum(means) / len(means)


def phase(plan: Plan, now: Progress) -> RunPhase:
    """What a watcher is told the run is doing."""
    kinds = {type(decision) for decision in outstanding(plan, now)}
    order = [
        (Evaluate, RunPhase.EVALUATING),
        (WriteGroup, RunPhase.WRITING),
        (UpdatePolicy, RunPhase.UPDATING),
        (Commit, RunPhase.COMMITTING),
    ]
    return next((name for kind, name in order if kind in kinds), RunPhase.ENDED)
