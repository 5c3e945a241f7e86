"""When an inbox is worked off: a pure function of the time, the schedule, the last window and what waits.

A window opens whenever the cron expression matches in its time zone, and stays open for its length; a new opening ends
the one before. In a window documents are taken oldest first, in batches, as long as the most that a batch can cost
still fits into what is left of the window's budget. What began in a window is finished. A window that passed while
nobody was there is not made up for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim

_SHORTEST = timedelta(minutes=2)


@dataclass(frozen=True)
class Schedule:
    cron: str
    """Five fields: minute, hour, day of month, month, day of week."""
    time_zone: str
    """Such as `Europe/Vienna`. An hour that clocks skip opens at its end, one that they repeat opens once for `2 *`."""
    window: timedelta
    budget: int
    """Evaluations a window."""
    batch: int
    """Most documents that are begun at once."""


@dataclass(frozen=True)
class Window:
    """What is remembered of a window."""

    start: datetime
    """Aware."""
    spent: int = 0
    """Evaluations used by batches that ended, and reserved by one under way."""
    batches: int = 0


@dataclass(frozen=True)
class Waiting:
    """A document that waits."""

    key: str
    cost: int
    """The most evaluations it can take."""


@dataclass(frozen=True)
class Wait:
    """Nothing is to be begun before `until`, unless a document comes or a batch ends."""

    until: datetime


@dataclass(frozen=True)
class Begin:
    """A batch is to be begun."""

    window: Window
    """As it is before; a new window has spent nothing."""
    keys: tuple[str, ...]
    cost: int


def openings(schedule: Schedule, after: datetime) -> Iterator[datetime]:
    """When windows open after a time, in UTC; endless for an expression that can match."""
    for opening in CronSim(schedule.cron, after.astimezone(ZoneInfo(schedule.time_zone))):
        yield opening.astimezone(UTC)


def open_since(schedule: Schedule, now: datetime) -> datetime | None:
    """When the window that is open now was opened; None between windows."""
    # Looked for ever further back: a window of a week that opens every minute has ten thousand openings.
    span = min(_SHORTEST, schedule.window)
    while True:
        past = list(itertools.takewhile(lambda opening: opening <= now, openings(schedule, now - span)))
        if past or span == schedule.window:
            return past[-1] if past else None
        span = min(2 * span, schedule.window)


def next_opening(schedule: Schedule, now: datetime) -> datetime:
    """When the next window opens, later than now."""
    return next(openings(schedule, now))


def decide(
    now: datetime, schedule: Schedule, last: Window | None, busy: bool, waiting: Sequence[Waiting]
) -> Wait | Begin:
    """What to do now. `last` is the newest window that anything was begun in, `waiting` oldest first."""
    later = Wait(next_opening(schedule, now))
    opened = open_since(schedule, now)
    if busy or opened is None:
        return later
    if last is not None and last.start > opened:
        # The clock went back, or the expression was changed: an earlier window is not opened after a later one.
        return later
    window = last if last is not None and last.start == opened else Window(opened)
    left = schedule.budget - window.spent
    keys: list[str] = []
    cost = 0
    for item in waiting[: schedule.batch]:
        # Strictly in order: a cheaper document does not overtake a dear one for ever.
        if cost + item.cost > left:
            break
        keys.append(item.key)
        cost += item.cost
    return Begin(window, tuple(keys), cost) if keys else later
