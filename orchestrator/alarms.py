"""What is to be looked at when, in the order of time; what nobody needs any more is swept out now and then."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterator

Alarm = tuple[str, Hashable]
"""What kind, and about what."""


class Alarms:
    """`needed` says of an alarm whether it still means anything: most are deadlines of what has long ended."""

    def __init__(self, needed: Callable[[str, Hashable], bool]) -> None:
        self._needed = needed
        self._heap: list[tuple[float, int, str, Hashable]] = []
        self._numbers = itertools.count()
        self._sweep_at = 1000

    def add(self, when: float, kind: str, about: Hashable) -> None:
        """Rings at a time."""
        heapq.heappush(self._heap, (when, next(self._numbers), kind, about))
        if len(self._heap) > self._sweep_at:
            self._heap = [each for each in self._heap if self._needed(each[2], each[3])]
            heapq.heapify(self._heap)
            self._sweep_at = 2 * len(self._heap) + 1000

    def next_at(self) -> float | None:
        """When the first one rings."""
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Iterator[Alarm]:
        """Those that ring by now, oldest first; also those that are added for now meanwhile."""
        while self._heap and self._heap[0][0] <= now:
            _, _, kind, about = heapq.heappop(self._heap)
            yield kind, about
