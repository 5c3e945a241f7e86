"""When groups close: gives up what is left of those that have enough, as soon as their policy allows it.

What is enough, and what of a group may be given up, is decided in `closing`; here is the clock, and what failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.closing import Closing, GroupPolicy, enough, to_give_up
from orchestrator.machine import Machine
from orchestrator.plan import Group
from orchestrator.run_events import Evaluate


class GroupClosing:
    """Of one run; `give_up` is called with an evaluation that is not needed any more, and why."""

    def __init__(self, policy: GroupPolicy, give_up: Callable[[Evaluate, str], None]) -> None:
        self._policy, self._give_up = policy, give_up
        self._failed: set[Evaluate] = set()
        self._waited: set[Group] = set()
        self._timers: dict[Group, asyncio.TimerHandle] = {}

    def start(self, machine: Machine, tried: Callable[[Evaluate, Group], bool]) -> None:
        """Groups that had enough before a restart close, too: nothing else may ever happen in them.

        `tried` says whether an attempt at an evaluation had failed before.
        """
        self._machine, self._loop = machine, asyncio.get_running_loop()
        if self._policy.close is not Closing.MINIMUM:
            return
        for group in list(machine.groups):
            left = [work for work in machine.works(group) if work not in machine.results]
            self._failed.update(work for work in left if tried(work, group))
            if left:
                self.look(group)

    def stop(self) -> None:
        """No group closes any more."""
        for timer in self._timers.values():
            timer.cancel()

    def under_way(self, work: Evaluate) -> None:
        """It was handed out, perhaps after its group closed."""
        group = self._machine.group_of(work)
        if group in self._waited:
            self._loop.call_soon(self.look, group)

    def attempt_failed(self, work: Evaluate) -> None:
        """It is tried again, unless its group has enough without it."""
        self._failed.add(work)
        self.look(self._machine.group_of(work))

    def ended(self, work: Evaluate) -> None:
        """It has its result."""
        self._failed.discard(work)

    def look(self, group: Group) -> None:
        """Something happened in the group: it may have enough now."""
        if not enough(self._policy, self._machine, group):
            return
        wait_s = self._policy.wait_s
        if wait_s is not None and group not in self._timers:
            self._timers[group] = self._loop.call_later(wait_s, self._waited_for, group)
        reason = f"not needed: {self._policy.minimum} candidates of its group are scored"
        for work in to_give_up(self._policy, self._machine, group, self._failed, group in self._waited):
            self._give_up(work, reason)

    def _waited_for(self, group: Group) -> None:
        self._waited.add(group)
        self.look(group)
