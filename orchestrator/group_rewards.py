"""Rewards of candidates, as an update learns from them and as they would be under other settings.

Estimated for each student by itself, over all groups that are asked about; then over students as the run's plan says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.machine import Machine
from orchestrator.plan import Across, Group
from orchestrator.run_events import Evaluate
from tutelage.domain.evaluation import EvaluationOutcome
from tutelage.domain.reward import Repeats, RewardSettings, candidate_rewards, repeats_of

Rewards = tuple[float | None, ...]
RepeatsOf = Mapping[tuple[Group, str, str], Repeats]
"""By (group, edit, student)."""


def measured(machine: Machine, groups: Sequence[Group]) -> RepeatsOf:
    """What the machine knows of each distinct edit."""

    def repeats(group: Group, edit: str, student: str) -> Repeats:
        works = [Evaluate(group.round, group.task, edit, student, repeat) for repeat in range(machine.plan.repeats)]
        rejections = sum(work in machine.rejected for work in works)
        each = (machine.results.get(work) for work in works if work not in machine.rejected)
        return Repeats([reward for reward in each if reward is not None], rejections)

    return {key: repeats(*key) for key in _keys(machine, groups)}


def recomputed(
    machine: Machine, groups: Sequence[Group], outcomes: Mapping[Evaluate, EvaluationOutcome], settings: RewardSettings
) -> RepeatsOf:
    """The same from stored outcomes, scored by `settings`, without a student.

    A report that earns nothing under them, as one that a judge did not grade, is left out.
    """

    def repeats(group: Group, edit: str, student: str) -> Repeats:
        works = [Evaluate(group.round, group.task, edit, student, repeat) for repeat in range(machine.plan.repeats)]
        return repeats_of([outcomes[work] for work in works if work in outcomes], settings)

    return {key: repeats(*key) for key in _keys(machine, groups)}


def _keys(machine: Machine, groups: Sequence[Group]) -> list[tuple[Group, str, str]]:
    # Equal candidates share their evaluations and count once: a copy is no second look.
    return [
        (group, edit, student)
        for group in groups
        for edit in dict.fromkeys(edit for edit in machine.groups[group] if edit is not None)
        for student in machine.plan.readers(group.audience)
    ]


def group_rewards(
    machine: Machine,
    groups: Sequence[Group],
    repeats: RepeatsOf,
    settings: RewardSettings,
    across: Across | None = None,
) -> Mapping[Group, Rewards]:
    """Reward of each candidate of each group by index; None is unscored. `across`: as the plan says, if not given.

    A student without a scored repeat leaves the candidate unscored, as `Machine.rewards` does; without `shrink` the two
    are equal.
    """
    plan = machine.plan
    estimates: dict[tuple[Group, str, str], float | None] = {}
    for student in plan.students:
        alike: dict[Group, list[tuple[Group, str, str]]] = {}
        for key in repeats:
            if key[2] == student:
                alike.setdefault(key[0], []).append(key)
        found = candidate_rewards([[repeats[key] for key in keys] for keys in alike.values()], settings)
        for keys, each in zip(alike.values(), found, strict=True):
            estimates.update(zip(keys, each, strict=True))

    def reward(group: Group, edit: str | None) -> float | None:
        if edit is None:
            return settings.rejected_reward
        each = [estimates[group, edit, student] for student in plan.readers(group.audience)]
        scored = [value for value in each if value is not None]
        if len(scored) < len(each):
            return None
        return min(scored) if (across or plan.across) is Across.WORST else sum(scored) / len(scored)

    return {group: tuple(reward(group, edit) for edit in machine.groups[group]) for group in groups}


def task_rewards(machine: Machine, round_: int, settings: RewardSettings) -> Mapping[str, Rewards]:
    """By task what the update of a round learns from, audience after audience, as the indices of candidates count."""
    groups = [group for group in machine.round_groups(round_) if group in machine.groups]
    found = group_rewards(machine, groups, measured(machine, groups), settings)
    unwritten = (None,) * machine.plan.candidates
    return {
        task: tuple(
            reward for who in machine.plan.audiences for reward in found.get(Group(round_, task, who), unwritten)
        )
        for task in machine.plan.tasks
    }
