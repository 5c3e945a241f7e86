"""Where a run's time went, from its events: by round writing until the last candidate, then evaluating, then updating.

With a staleness above 0 rounds overlap: a round's seconds are its own, and their sum may exceed the run's. Time in
which the run was paused or nobody drove it belongs to the phase that it interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.report.data import PhaseTime
from tutelage.domain.run import RunEvent


@dataclass
class _Round:
    started: datetime
    written: datetime | None = None
    done: datetime | None = None


def phase_times(events: Sequence[RunEvent]) -> tuple[PhaseTime, ...]:
    """Seconds by round and phase of the rounds that ended, and of the commits (round 0)."""
    rounds: dict[int, _Round] = {}
    times: list[PhaseTime] = []
    committing: datetime | None = None
    for event in events:
        number = event.detail.get("round")
        if event.kind == "commit_started":
            committing = event.at
        elif event.kind == "run_done" and committing is not None:
            times.append(PhaseTime(0, "committing", (event.at - committing).total_seconds()))
            committing = None
        elif not isinstance(number, int):
            continue
        elif event.kind in ("round_started", "candidate_written"):
            # Ahead of its time a round is written before the one before it has ended.
            found = rounds.setdefault(number, _Round(event.at))
            if event.kind == "candidate_written":
                found.written = event.at
        elif event.kind == "evaluation_done" and event.detail.get("phase") == "round" and number in rounds:
            rounds[number].done = event.at
        elif event.kind == "policy_updated" and number in rounds:
            times += _ended(number, rounds.pop(number), event.at)
    return tuple(times)


def _ended(number: int, found: _Round, at: datetime) -> list[PhaseTime]:
    written = found.written or found.started
    done = max(found.done or written, written)
    return [
        PhaseTime(number, "writing", (written - found.started).total_seconds()),
        PhaseTime(number, "evaluating", (done - written).total_seconds()),
        PhaseTime(number, "updating", (at - done).total_seconds()),
    ]
