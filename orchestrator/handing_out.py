"""Which evaluations of a run the dispatcher has: a few more of each student than it has slots, the others wait. Pure.

A place is given back when the student has answered, however long judges take over the answers: they use no slot. Only
so many may be left to judges and the database, for their reports are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from orchestrator.run_events import Evaluate

MOST_ANSWERED = 1000
"""Evaluations that students have answered and that are not stored; with as many nothing more is handed out. A report
is some ten to hundred kilobytes."""


class HandingOut:
    """The evaluations of one run that have not ended."""

    def __init__(self, students: Sequence[str], slots: Callable[[str], int]) -> None:
        self._slots = slots
        self._waiting: dict[str, deque[Evaluate]] = {name: deque() for name in students}
        self._handed: dict[str, set[Evaluate]] = {name: set() for name in students}
        self._answered: set[Evaluate] = set()
        self._room: set[str] = set()
        """Students that may have room for more."""

    @property
    def waiting(self) -> int:
        """How many were not handed out."""
        return sum(len(waiting) for waiting in self._waiting.values())

    def add(self, work: Evaluate) -> None:
        """Waits for a place after what was added before."""
        self._waiting[work.student].append(work)
        self._room.add(work.student)

    def clear(self) -> None:
        """Nothing waits any more."""
        for waiting in self._waiting.values():
            waiting.clear()

    def look_at(self, student: str) -> None:
        """Its slots may have changed."""
        self._room.add(student)

    def next(self) -> Iterator[Evaluate]:
        """What there is a place for now; each has it from then on."""
        if len(self._answered) >= MOST_ANSWERED:
            return
        room, self._room = self._room, set()
        for name in room:
            waiting, handed = self._waiting[name], self._handed[name]
            # A few more than there are slots, so that a slot that falls free need not wait for us.
            window = 2 * self._slots(name) + 2
            while waiting and len(handed) < window:
                handed.add(waiting[0])
                yield waiting.popleft()

    def answered(self, work: Evaluate) -> None:
        """Its student is done with it, judges and the database are not."""
        self._answered.add(work)
        self._give_back(work)

    def ended(self, work: Evaluate) -> None:
        """It is stored, or was given up."""
        self._answered.discard(work)
        self._give_back(work)

    def _give_back(self, work: Evaluate) -> None:
        self._handed[work.student].discard(work)
        self._room.add(work.student)
