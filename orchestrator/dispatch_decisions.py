"""The words of dispatch: the rules it follows, the faults it is told of, the decisions it takes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import StrEnum

Job = Hashable
"""An evaluation, by whatever names it."""


@dataclass(frozen=True)
class Rules:
    """How failures are answered."""

    initial_s: float = 1.0
    factor: float = 2.0
    maximum_s: float = 30.0
    set_aside_after: int = 3
    """Failures in a row."""
    budget: float = 20.0
    """Failures that a student's jobs may have at once before retries slow down; see RetryBudget."""
    report_s: float = 30.0
    """Seconds between two questions how many slots are free."""


@dataclass(frozen=True)
class Limits:
    """How long and how often one job is tried."""

    attempts: int
    attempt_s: float
    total_s: float
    """Seconds from its first start; before that, seconds for which its student has no replica at all."""


class Fault(StrEnum):
    LOST = "unavailable"
    """The replica or the way to it is gone, or it took too long."""
    FULL = "exhausted"
    """It has no room. One that says when it will have is filled by others, and the job had no attempt there."""
    FAILED = "internal"
    """The replica answered with a fault of its own."""
    REFUSED = "refused"
    """This replica cannot do this job; another one may."""


# Decisions.
@dataclass(frozen=True)
class Start:
    job: Job
    address: str
    attempt: int
    """Names the attempt in what is told of it."""
    timeout_s: float


@dataclass(frozen=True)
class Stop:
    """Ends an attempt under way: nobody waits for it."""

    attempt: int


@dataclass(frozen=True)
class Again:
    """The job's attempt failed and will be made again after a pause."""

    job: Job
    attempts: int
    wait_s: float
    reason: str


@dataclass(frozen=True)
class GiveUp:
    job: Job
    attempts: int
    reason: str


@dataclass(frozen=True)
class Probe:
    """Ask a replica what it is and how many slots are free."""

    student: str
    address: str


Decision = Start | Stop | Again | GiveUp | Probe
