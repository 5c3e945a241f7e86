"""How often replicas are asked how they are: one question at a time, and at once when somebody wants them."""

from __future__ import annotations

from orchestrator.dispatch import Dispatch
from orchestrator.dispatch_decisions import Fault, Limits, Probe, Rules, Start

RULES = Rules(initial_s=1, factor=2, maximum_s=8, set_aside_after=2, budget=1000, report_s=10)
LIMITS = Limits(attempts=1000, attempt_s=50, total_s=100_000)
ONE = Probe("a", "one")


def asked(dispatch: Dispatch, until: float, answers: bool) -> list[float]:
    """When the replica was asked, up to a time; each question is answered at once, or found to be in vain."""
    found = []
    while (now := dispatch.wake_at()) is not None and now <= until:
        decisions = dispatch.tick(now)
        found += [now for each in decisions if each == ONE]
        if ONE not in decisions:
            continue
        if answers:
            dispatch.reported("a", "one", 1, 1, now)
        else:
            dispatch.unreachable("a", "one", now)
    return found


def ready() -> Dispatch:
    dispatch = Dispatch(RULES)
    dispatch.listed("a", ["one"], 0.0)
    dispatch.reported("a", "one", 1, 1, 0.0)
    return dispatch


def test_a_replica_that_was_set_aside_often_is_asked_no_more_often_for_it() -> None:
    dispatch, now = ready(), 0.0
    started = [each for each in dispatch.submit("job", "a", LIMITS, now) if isinstance(each, Start)]
    for _ in range(20):
        # Set aside, back, and at work again: each time somebody had planned to ask it already.
        for _ in range(2):
            while not started:
                now = dispatch.wake_at() or now
                decisions = dispatch.tick(now)
                started = [each for each in decisions if isinstance(each, Start)]
                if ONE in decisions:
                    answer = dispatch.reported("a", "one", 1, 1, now)
                    started += [each for each in answer if isinstance(each, Start)]
            dispatch.failed(started.pop().attempt, Fault.LOST, "gone", now)
    dispatch.withdraw("job", now)
    asked(dispatch, now + 20, answers=True)
    assert len(asked(dispatch, now + 120, answers=True)) == 10


def test_who_starts_after_the_orchestrator_is_given_all_that_it_has_room_for() -> None:
    """It never failed, and need not succeed with one evaluation before it gets the next."""
    dispatch = Dispatch(RULES)
    dispatch.listed("a", ["one"], 0.0)
    dispatch.unreachable("a", "one", 0.0)
    for name in ("first", "second", "third", "fourth"):
        dispatch.submit(name, "a", LIMITS, 1.0)
    asked(dispatch, 30.0, answers=False)
    wake = dispatch.wake_at()
    assert wake is not None
    assert ONE in dispatch.tick(wake)
    assert sum(isinstance(each, Start) for each in dispatch.reported("a", "one", 3, 3, wake)) == 3


def test_who_was_away_is_asked_at_once_when_a_run_begins_and_not_twice() -> None:
    dispatch = Dispatch(RULES)
    assert dispatch.listed("a", ["one"], 0.0) == [ONE]
    dispatch.unreachable("a", "one", 0.0)
    asked(dispatch, 30.0, answers=False)
    wake = dispatch.wake_at()
    assert wake is not None
    assert wake > 30.0
    assert dispatch.wanted("a") == [ONE]
    assert dispatch.wanted("a") == []
    assert dispatch.tick(wake) == []
    dispatch.reported("a", "one", 1, 1, wake)
    assert dispatch.slots("a") == 1
    # It is there, so that nobody need hurry.
    assert dispatch.wanted("a") == []
    assert dispatch.wanted("unknown") == []
    assert asked(dispatch, wake + 25, answers=True) == [wake + 10, wake + 20]
