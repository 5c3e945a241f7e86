"""What dispatch remembers: of each job that has not ended, and of each student."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.backoff import RetryBudget
from orchestrator.dispatch_decisions import Job, Limits
from orchestrator.fair_queue import FairQueue
from orchestrator.replica import Replica


@dataclass
class Waiting:
    """A job that has not ended."""

    student: str
    owner: str
    rank: tuple[int, ...]
    limits: Limits
    attempts: int
    first_start: float | None = None
    running: int | None = None
    """Number of the attempt under way."""
    last_address: str = ""
    refused: dict[str, str] = field(default_factory=dict)
    reason: str = ""


@dataclass
class KnownStudent:
    """A student with its replicas and its jobs."""

    budget: RetryBudget
    lost_at: float
    """Since when no replica is trusted; meaningless while one is."""
    replicas: dict[str, Replica] = field(default_factory=dict)
    queue: FairQueue = field(default_factory=FairQueue)
    jobs: dict[Job, None] = field(default_factory=dict)

    @property
    def trusted(self) -> bool:
        """Whether any replica may get work."""
        return any(replica.trusted for replica in self.replicas.values())
