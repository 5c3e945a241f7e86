"""What dispatch knows of one replica of a student: its room, its load, and whether it is trusted with work. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Standing(StrEnum):
    NEW = "new"
    """Not heard of yet: gets no work."""
    READY = "ready"
    PROBATION = "probation"
    """Back after it failed and was set aside: one evaluation at a time until one succeeds."""
    ASIDE = "aside"
    """Failed again and again, or does not answer: gets no work until it answers a probe."""
    LEAVING = "leaving"
    """No longer listed: what it has may end, nothing new comes."""


@dataclass
class Replica:
    student: str
    address: str
    standing: Standing = Standing.NEW
    slots: int = 1
    running: int = 0
    """Attempts of ours under way."""
    others: int = 0
    """Slots that it said are taken by others."""
    failures: int = 0
    """Failed attempts in a row."""
    setbacks: int = 0
    """Times in a row that it was set aside, or did not answer."""
    full_until: float = 0.0
    """It said that it has no room before this time."""
    probing: bool = False
    probe_at: float = math.inf
    """When it is asked next how it is. There is one such time: what was set before means nothing any more."""
    changes: int = 0
    """Grows with every start and end, so that a report is only believed of a moment that has not passed."""
    changes_at_probe: int = 0

    @property
    def trusted(self) -> bool:
        """Whether it may get work at all."""
        return self.standing in (Standing.READY, Standing.PROBATION)

    def free(self, now: float) -> int:
        """Evaluations it may be given now."""
        if not self.trusted or now < self.full_until:
            return 0
        if self.standing is Standing.PROBATION:
            return max(0, 1 - self.running)
        return max(0, self.slots - self.others - self.running)

    def to_be_asked(self, now: float) -> bool:
        """Whether it is time for the next probe, and none is under way."""
        return now >= self.probe_at and not self.probing and self.standing is not Standing.LEAVING

    @property
    def load(self) -> float:
        """Share of its slots that are taken."""
        return (self.running + self.others) / self.slots

    def started(self) -> None:
        """An attempt began."""
        self.running += 1
        self.changes += 1

    def ended(self) -> None:
        """An attempt ended, however."""
        self.running -= 1
        self.changes += 1

    def succeeded(self) -> None:
        """It ended an evaluation as it should."""
        self.failures = self.setbacks = 0
        if self.standing is Standing.PROBATION:
            self.standing = Standing.READY

    def failed(self, limit: int) -> bool:
        """An attempt on it failed; whether it is now to be set aside."""
        self.failures += 1
        return self.trusted and (self.standing is Standing.PROBATION or self.failures >= limit)

    def set_aside(self) -> None:
        """No more work until it answers."""
        self.standing = Standing.ASIDE
        self.setbacks += 1

    def asked(self) -> None:
        """A probe is under way."""
        self.probing, self.probe_at = True, math.inf
        self.changes_at_probe = self.changes

    def reported(self, slots: int, free: int) -> None:
        """It answered a probe."""
        self.probing = False
        self.slots = max(1, slots)
        if self.changes == self.changes_at_probe:
            self.others = max(0, self.slots - max(0, free) - self.running)
        else:
            self.others = min(self.others, max(0, self.slots - self.running))
        if self.standing is Standing.NEW:
            self.standing = Standing.READY
        elif self.standing is Standing.ASIDE:
            # One that never failed was not there yet: a student takes longer to start than the orchestrator.
            self.standing = Standing.PROBATION if self.failures else Standing.READY
