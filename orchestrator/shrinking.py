"""Rewards of a round's candidates, drawn towards their group's mean by the share of noise that their repeats show.

Estimated for each student by itself, over all groups of the round; then over students as without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.machine import Machine
from orchestrator.plan import Across, Group
from orchestrator.run_events import Evaluate
from tutelage.domain.reward import candidate_estimates

Rewards = tuple[float | None, ...]


def shrunken_rewards(machine: Machine, groups: Sequence[Group]) -> Mapping[Group, Rewards]:
    """As `Machine.rewards` of each group, from shrunken estimates in the place of each student's mean.

    What the mean leaves unscored stays so, and a rejected edit earns what is agreed: it has no noise.
    """
    plan = machine.plan
    # Equal candidates share their evaluations and count once: a copy is no second look.
    edits = {group: sorted({edit for edit in machine.groups[group] if edit is not None}) for group in groups}
    estimates: dict[tuple[Group, str, str], float | None] = {}
    for student in plan.students:
        read = [group for group in groups if student in plan.readers(group.audience)]
        values = [[_repeats(machine, group, edit, student) for edit in edits[group]] for group in read]
        for group, found in zip(read, candidate_estimates(values, shrink=True), strict=True):
            estimates |= {(group, edit, student): each for edit, each in zip(edits[group], found, strict=True)}

    def reward(group: Group, edit: str | None) -> float | None:
        if edit is None:
            return plan.rejected_reward
        each = [estimates[group, edit, student] for student in plan.readers(group.audience)]
        scored = [value for value in each if value is not None]
        if len(scored) < len(each):
            return None
        return min(scored) if plan.across is Across.WORST else sum(scored) / len(scored)

    return {group: tuple(reward(group, edit) for edit in machine.groups[group]) for group in groups}


def _repeats(machine: Machine, group: Group, edit: str, student: str) -> list[float]:
    each = (
        machine.results.get(Evaluate(group.round, group.task, edit, student, repeat))
        for repeat in range(machine.plan.repeats)
    )
    return [reward for reward in each if reward is not None]
