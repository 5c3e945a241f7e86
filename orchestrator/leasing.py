"""A run is driven by one orchestrator at a time: it holds a lease, and its writes name the lease's epoch."""

from __future__ import annotations

from dataclasses import dataclass

from tutelage.domain.errors import TutelageError
from tutelage.domain.run import RunState


class LeaseLost(TutelageError):
    """Another orchestrator drives the run now, or nobody does: what this one would write is void."""


class EndedElsewhere(LeaseLost):
    """Nobody drives the run any more: somebody else has ended it."""


@dataclass(frozen=True)
class Lease:
    """What an orchestrator holds of a run."""

    run_id: str
    epoch: int
    """Grows each time the run changes hands; writes of an earlier epoch are refused."""


@dataclass(frozen=True)
class Held:
    """What a renewal found."""

    held: bool
    state: RunState
