"""The schedule as a pure function: windows by cron and time zone, a budget that no history of work exceeds."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import schedule as schedule_module
from orchestrator.schedule import Begin, Schedule, Wait, Waiting, Window, decide, next_opening, open_since, openings

NIGHTLY = Schedule("30 2 * * *", "Europe/Berlin", timedelta(hours=3), budget=20, batch=4)
DOCUMENTS = tuple(Waiting(f"d{number}", 7) for number in range(9))


def _utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type,misc]


def test_a_window_opens_in_its_own_time_zone() -> None:
    assert open_since(NIGHTLY, _utc(2026, 1, 10, 1, 29)) is None
    assert open_since(NIGHTLY, _utc(2026, 1, 10, 1, 30)) == _utc(2026, 1, 10, 1, 30)
    assert open_since(NIGHTLY, _utc(2026, 1, 10, 4, 29)) == _utc(2026, 1, 10, 1, 30)
    assert open_since(NIGHTLY, _utc(2026, 1, 10, 4, 30)) is None
    # In summer the same wall-clock time is an hour earlier.
    assert next_opening(NIGHTLY, _utc(2026, 7, 10, 12, 0)) == _utc(2026, 7, 11, 0, 30)


def test_nights_when_clocks_change_have_one_window_each() -> None:
    # 29 March 2026: 02:30 does not exist and opens at 03:00 (01:00 UTC). 25 October: 02:30 comes twice, and opens once.
    assert next_opening(NIGHTLY, _utc(2026, 3, 28, 12)) == _utc(2026, 3, 29, 1, 0)
    assert next_opening(NIGHTLY, _utc(2026, 3, 29, 1, 0)) == _utc(2026, 3, 30, 0, 30)
    assert next_opening(NIGHTLY, _utc(2026, 10, 24, 12)) == _utc(2026, 10, 25, 0, 30)
    assert next_opening(NIGHTLY, _utc(2026, 10, 25, 0, 30)) == _utc(2026, 10, 26, 1, 30)


def test_a_window_that_opens_all_the_time_is_found_in_a_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    def counted(*given: Any) -> Any:
        nonlocal steps
        for opening in openings(*given):
            steps += 1
            yield opening

    monkeypatch.setattr(schedule_module, "openings", counted)
    always = dataclasses.replace(NIGHTLY, cron="* * * * *", window=timedelta(days=7))
    assert open_since(always, _utc(2026, 1, 10, 1, 30)) == _utc(2026, 1, 10, 1, 30)
    assert steps < 10


@given(
    st.sampled_from(["30 2 * * *", "*/7 1-3 * * *", "0 0 * * 0", "15 */5 * * *", "* 2 * * *"]),
    st.sampled_from([timedelta(seconds=40), timedelta(hours=3), timedelta(days=2), timedelta(days=7)]),
    st.datetimes(datetime(2026, 3, 27), datetime(2026, 4, 2), timezones=st.just(UTC))
    | st.datetimes(datetime(2026, 10, 23), datetime(2026, 10, 28), timezones=st.just(UTC)),
)
@settings(deadline=None, max_examples=60)
def test_looking_back_in_steps_finds_what_walking_the_window_finds(cron: str, window: timedelta, now: datetime) -> None:
    schedule = dataclasses.replace(NIGHTLY, cron=cron, window=window)
    walked = list(itertools.takewhile(lambda opening: opening <= now, openings(schedule, now - window)))
    assert open_since(schedule, now) == (walked[-1] if walked else None)


def test_oldest_first_as_far_as_budget_and_batch_reach() -> None:
    now = _utc(2026, 1, 10, 2)
    begun = decide(now, NIGHTLY, None, False, DOCUMENTS)
    assert begun == Begin(Window(_utc(2026, 1, 10, 1, 30)), ("d0", "d1"), 14)
    roomy = dataclasses.replace(NIGHTLY, budget=1000)
    begun = decide(now, roomy, None, False, DOCUMENTS)
    assert isinstance(begun, Begin)
    assert begun.keys == ("d0", "d1", "d2", "d3")


@pytest.mark.parametrize(
    ("now", "last", "busy", "waiting"),
    [
        (_utc(2026, 1, 10, 12), None, False, DOCUMENTS),  # between windows
        (_utc(2026, 1, 10, 2), None, True, DOCUMENTS),  # a batch is under way
        (_utc(2026, 1, 10, 2), None, False, ()),  # nothing waits
        (_utc(2026, 1, 10, 2), Window(_utc(2026, 1, 10, 1, 30), spent=14), False, DOCUMENTS),  # 6 left, 7 needed
        (_utc(2026, 1, 10, 2), Window(_utc(2026, 1, 11, 1, 30)), False, DOCUMENTS),  # the clock went back
        (_utc(2026, 1, 10, 2), None, False, (Waiting("dear", 21), Waiting("cheap", 1))),  # no overtaking
    ],
)
def test_nothing_is_begun(now: datetime, last: Window | None, busy: bool, waiting: tuple[Waiting, ...]) -> None:
    decision = decide(now, NIGHTLY, last, busy, waiting)
    assert isinstance(decision, Wait)
    assert decision.until > now


SCHEDULES = st.builds(
    Schedule,
    cron=st.sampled_from(["0 2 * * *", "*/20 * * * *", "30 2,14 * * 1-5", "0 */6 * * *", "15 3 1 * *"]),
    time_zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
    window=st.integers(1, 600).map(lambda minutes: timedelta(minutes=minutes)),
    budget=st.integers(1, 60),
    batch=st.integers(1, 5),
)
# Around the nights when clocks change, and in between.
MOMENTS = st.sampled_from([_utc(2026, 3, 28), _utc(2026, 10, 24), _utc(2026, 6, 1), _utc(2026, 11, 1)])
# What happens: time passes, a document comes, the batch ends having used a share of what it reserved, a restart.
HAPPENINGS = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(1, 400)),
        st.tuples(st.just("come"), st.integers(1, 30)),
        st.tuples(st.just("end"), st.integers(0, 100)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(SCHEDULES, MOMENTS, HAPPENINGS)
def test_no_history_exceeds_a_budget_or_loses_or_doubles_a_document(
    schedule: Schedule, now: datetime, happenings: list[tuple[str, int]]
) -> None:
    last: Window | None = None
    under_way: Begin | None = None
    waiting: list[Waiting] = []
    begun: list[str] = []
    used: dict[datetime, int] = {}
    come = 0
    for kind, amount in happenings:
        if kind == "pass":
            now += timedelta(minutes=amount)
        elif kind == "come":
            waiting.append(Waiting(f"d{come}", amount))
            come += 1
        elif under_way is not None and last is not None:
            really = under_way.cost * amount // 100
            used[under_way.window.start] = used.get(under_way.window.start, 0) + really
            if last.start == under_way.window.start:
                last = dataclasses.replace(last, spent=last.spent - under_way.cost + really)
            under_way = None
        decision = decide(now, schedule, last, under_way is not None, tuple(waiting))
        # Only facts decide: asked again, as after a restart, it says the same.
        assert decision == decide(now, schedule, last, under_way is not None, tuple(waiting))
        if isinstance(decision, Wait):
            assert decision.until > now
            continue
        assert under_way is None
        window = decision.window
        assert window.start <= now < window.start + schedule.window
        assert last is None or window.start >= last.start
        assert 1 <= len(decision.keys) <= schedule.batch
        assert list(decision.keys) == [item.key for item in waiting[: len(decision.keys)]]
        assert window.spent + decision.cost <= schedule.budget
        begun += decision.keys
        waiting = waiting[len(decision.keys) :]
        last = Window(window.start, window.spent + decision.cost, window.batches + 1)
        under_way = decision
    assert len(begun) == len(set(begun))
    assert len(begun) + len(waiting) == come
    assert all(spent <= schedule.budget for spent in used.values())


@settings(max_examples=200, deadline=None)
@given(SCHEDULES, MOMENTS, st.integers(0, 10_000))
def test_whoever_waits_until_then_finds_a_window(schedule: Schedule, now: datetime, minutes: int) -> None:
    now += timedelta(minutes=minutes)
    opening = next_opening(schedule, now)
    begun = decide(opening, schedule, None, False, (Waiting("d", 1),))
    assert isinstance(begun, Begin)
    assert begun.window.start == opening
