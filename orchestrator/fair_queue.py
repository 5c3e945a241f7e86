"""Who is next at a student: the owner with the least under way; of its jobs the lowest rank, then the oldest."""

from __future__ import annotations

import heapq
import itertools

from orchestrator.dispatch_decisions import Job


class FairQueue:
    """Jobs that wait, and how many of each owner are under way."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[tuple[tuple[int, ...], int, Job]]] = {}
        self._running: dict[str, int] = {}
        self._numbers = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, job: Job, owner: str, rank: tuple[int, ...]) -> None:
        """A job waits, behind those of its owner and rank that wait already."""
        heapq.heappush(self._waiting.setdefault(owner, []), (rank, next(self._numbers), job))

    def take(self) -> Job:
        """The next one, which waits no longer."""
        owner = min(self._waiting, key=lambda each: (self._running.get(each, 0), self._waiting[each][0][:2]))
        queue = self._waiting[owner]
        _, _, job = heapq.heappop(queue)
        if not queue:
            del self._waiting[owner]
        return job

    def started(self, owner: str) -> None:
        """One more of the owner's is under way."""
        self._running[owner] = self._running.get(owner, 0) + 1

    def ended(self, owner: str) -> None:
        """One less."""
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
