"""Time by phase from the events of rounds, one after the other and overlapping."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from orchestrator.report.phases import phase_times
from tutelage.domain.run import RunEvent

START = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)


def _events(*told: tuple[int, str, dict[str, object]]) -> list[RunEvent]:
    return [
        RunEvent(number, START + timedelta(seconds=second), kind, detail)
        for number, (second, kind, detail) in enumerate(told, start=1)
    ]


def _seconds(events: list[RunEvent]) -> dict[tuple[int, str], float]:
    return {(item.round, item.phase): item.seconds for item in phase_times(events)}


def test_phases_follow_each_other() -> None:
    events = _events(
        (0, "round_started", {"round": 1}),
        (10, "candidate_written", {"round": 1}),
        (12, "evaluation_done", {"round": 1, "phase": "round"}),
        (20, "candidate_written", {"round": 1}),
        (50, "evaluation_done", {"round": 1, "phase": "round"}),
        (60, "policy_updated", {"round": 1}),
        (60, "commit_started", {}),
        (70, "evaluation_done", {"round": 1, "phase": "commit"}),
        (90, "run_done", {"message": ""}),
    )
    assert _seconds(events) == {(1, "writing"): 20, (1, "evaluating"): 30, (1, "updating"): 10, (0, "committing"): 30}


def test_rounds_that_overlap_keep_their_own_time() -> None:
    events = _events(
        (0, "round_started", {"round": 1}),
        (10, "candidate_written", {"round": 1}),
        (15, "candidate_written", {"round": 2}),
        (30, "evaluation_done", {"round": 1, "phase": "round"}),
        (35, "policy_updated", {"round": 1}),
        (35, "round_started", {"round": 2}),
        (40, "candidate_written", {"round": 2}),
        (60, "evaluation_done", {"round": 2, "phase": "round"}),
        (61, "policy_updated", {"round": 2}),
    )
    found = _seconds(events)
    assert (found[1, "writing"], found[1, "evaluating"], found[1, "updating"]) == (10, 20, 5)
    assert (found[2, "writing"], found[2, "evaluating"], found[2, "updating"]) == (25, 20, 1)


def test_a_round_under_way_has_no_time_yet() -> None:
    assert phase_times(_events((0, "round_started", {"round": 1}), (9, "candidate_written", {"round": 1}))) == ()
