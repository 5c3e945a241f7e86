"""Which waiting evaluation goes to which student: the oldest first, as far as that student's free slots reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.machine import Evaluate


def assign(waiting: Iterable[Evaluate], free: Mapping[str, int]) -> tuple[Evaluate, ...]:
    """The evaluations to start now, in the order they waited; never more for a student than it has free slots.

    A full or unknown student does not hold up work for the others.
    """
    left = dict(free)
    chosen = []
    for work in waiting:
        if left.get(work.student, 0) > 0:
            left[work.student] -= 1
            chosen.append(work)
        elif not any(count > 0 for count in left.values()):
            break
    return tuple(chosen)


def backoff_s(attempt: int, initial_s: float, factor: float, maximum_s: float) -> float:
    """Seconds to wait after the given failed attempt (1-based)."""
    return float(min(maximum_s, initial_s * factor ** min(attempt - 1, 64)))


def seconds_left(mean_s: float | None, remaining: Mapping[str, int], slots: Mapping[str, int]) -> float | None:
    """Estimate from a mean evaluation's seconds and what remains a student; the slowest student decides."""
    if mean_s is None:
        return None
    return max((count * mean_s / max(1, slots.get(name, 1)) for name, count in remaining.items()), default=0.0)
