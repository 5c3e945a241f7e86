"""When a group closes: with all its candidates, with the run's failure, or with enough of them. Pure.

A group closes by its last evaluations ending. So to close it early is to give up what is left of it: what is given up
is stored as unscored, never as zero, and a restarted orchestrator finds the group closed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.machine import Machine
from orchestrator.plan import Group
from orchestrator.run_events import Evaluate


class Closing(StrEnum):
    RETRY = "retry"
    """Every evaluation is tried to its last attempt."""
    FAIL_FAST = "fail_fast"
    """An evaluation that is given up fails the run."""
    MINIMUM = "minimum"
    """With enough candidates scored, the others are not tried again; with too few, the group is not learned from."""


@dataclass(frozen=True)
class GroupPolicy:
    close: Closing = Closing.RETRY
    minimum: int = 0
    """Candidates that make a group viable."""
    wait_s: float | None = None
    """Seconds that the rest may still take; None means as long as they do not fail."""


def scored(machine: Machine, group: Group) -> int:
    """Candidates of a group that are settled and have a reward."""
    settled = machine.settled(group)
    return sum(reward is not None and settled[index] for index, reward in enumerate(machine.rewards(group)))


def enough(policy: GroupPolicy, machine: Machine, group: Group) -> bool:
    """Whether a group may close without the rest of its candidates."""
    return policy.close is Closing.MINIMUM and scored(machine, group) >= policy.minimum


def to_give_up(
    policy: GroupPolicy, machine: Machine, group: Group, failed: Collection[Evaluate], waited: bool
) -> tuple[Evaluate, ...]:
    """What is left of a group and need not be waited for.

    `failed` are evaluations with a failed attempt; `waited` says that `wait_s` has passed since there were enough.
    """
    if not enough(policy, machine, group):
        return ()
    left = [work for work in machine.works(group) if work not in machine.results]
    return tuple(left if waited else [work for work in left if work in failed])


def viable(policy: GroupPolicy, machine: Machine, group: Group) -> bool:
    """Whether the teacher learns from a complete group."""
    return policy.close is not Closing.MINIMUM or scored(machine, group) >= policy.minimum
