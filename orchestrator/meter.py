"""How busy the teacher and each student were for a run: slot-seconds used, of those there were. Pure."""

from __future__ import annotations

from dataclasses import dataclass


def share(used: tuple[float, float] | None) -> float | None:
    """Of the slot-seconds there were, those that were used; None when there were none."""
    return used[0] / used[1] if used and used[1] > 0 else None


@dataclass
class _Reading:
    slots: float = 0.0
    in_use: int = 0
    busy_s: float = 0.0
    capacity_s: float = 0.0
    at: float = 0.0


class Meter:
    """Counts from its beginning; the caller keeps the time."""

    def __init__(self) -> None:
        self._readings: dict[str, _Reading] = {}

    def room(self, actor: str, slots: float, now: float) -> None:
        """From now on there are so many slots."""
        self._advanced(actor, now).slots = slots

    def start(self, actor: str, now: float) -> None:
        """One more slot is in use."""
        self._advanced(actor, now).in_use += 1

    def stop(self, actor: str, now: float) -> None:
        """One slot less is in use."""
        self._advanced(actor, now).in_use -= 1

    def take(self, now: float) -> dict[str, tuple[float, float]]:
        """Slot-seconds (used, there) by actor since the last call."""
        taken = {}
        for actor in self._readings:
            reading = self._advanced(actor, now)
            taken[actor] = reading.busy_s, reading.capacity_s
            reading.busy_s = reading.capacity_s = 0.0
        return taken

    def _advanced(self, actor: str, now: float) -> _Reading:
        reading = self._readings.setdefault(actor, _Reading(at=now))
        passed, reading.at = now - reading.at, now
        reading.busy_s += passed * reading.in_use
        # What is used is there, also when a replica that is on its way out is no longer counted.
        reading.capacity_s += passed * max(reading.slots, reading.in_use)
        return reading
