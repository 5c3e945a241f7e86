"""Intervals, chosen edits, tables of scores and lists of failures hold the numbers they should."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.report.bootstrap import mean_interval, paired_interval
from orchestrator.report.data import CandidateRecord, RunReport
from orchestrator.report.failures import problems
from orchestrator.report.quiz_scores import student_scores
from orchestrator.report.rewards import best_and_worst, chosen_ids, gain_by_document, groups, reward_by_round


def _candidate(index: int, reward: float | None, text: str = "text", chosen: bool | None = None) -> CandidateRecord:
    return CandidateRecord(f"c{index}", 1, "t", "T", index, "f", "p", text, reward=reward, chosen=chosen)


def test_an_interval_covers_the_mean_and_narrows_with_more_values() -> None:
    few, many = mean_interval([0.0, 1.0] * 5), mean_interval([0.0, 1.0] * 200)
    assert few is not None
    assert many is not None
    assert few.low < few.mean == 0.5 < few.high
    # Normal theory: 1.96 x 0.5 / sqrt(400) = 0.049.
    assert many.high - many.low == pytest.approx(2 * 0.049, rel=0.1)
    assert many.high - many.low < few.high - few.low


def test_pairs_are_resampled_together() -> None:
    before = [0.0, 0.5, 1.0, 0.2]
    shifted = paired_interval(before, [value + 0.25 for value in before])
    assert shifted is not None
    assert (shifted.low, shifted.mean, shifted.high) == pytest.approx((0.25, 0.25, 0.25))
    assert shifted.excludes_zero
    with pytest.raises(ValueError, match="no pairs"):
        paired_interval([1.0], [])


def test_one_value_has_no_width_and_none_has_no_interval() -> None:
    assert mean_interval([]) is None
    single = mean_interval([0.3])
    assert single is not None
    assert (single.low, single.high, single.excludes_zero) == (0.3, 0.3, False)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.integers(0, 5))
def test_intervals_stay_within_the_values_and_repeat(values: list[float], seed: int) -> None:
    interval = mean_interval(values, resamples=200, seed=seed)
    assert interval is not None
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval == mean_interval(values, resamples=200, seed=seed)


def test_the_chosen_is_the_recorded_one_else_the_best_above_zero_else_none() -> None:
    assert chosen_ids([_candidate(0, 0.9, chosen=False), _candidate(1, 0.1, chosen=True)]) == {"c1"}
    assert chosen_ids([_candidate(0, 0.4, "longer text"), _candidate(1, 0.4), _candidate(2, None)]) == {"c1"}
    assert chosen_ids([_candidate(0, 0.0), _candidate(1, -0.4)]) == frozenset()


def test_rewards_are_averaged_by_document_first(run_report: RunReport) -> None:
    candidates = (
        dataclasses.replace(_candidate(0, 1.0), task_id="x"),
        dataclasses.replace(_candidate(1, 0.0), task_id="y"),
        dataclasses.replace(_candidate(2, 0.0), task_id="y"),
        dataclasses.replace(_candidate(3, None), task_id="y"),
    )
    report = RunReport(run_report.header, candidates)
    (only,) = reward_by_round(groups(report))
    assert only.mean is not None
    assert only.mean.mean == pytest.approx(0.5)
    assert (only.scored, only.unscored) == (3, 1)
    assert [gain.task_id for gain in gain_by_document(groups(report))] == ["x", "y"]


def test_the_score_table_matches_the_reports(run_report: RunReport) -> None:
    tables = student_scores(run_report, groups(run_report))
    assert [table.student for table in tables] == ["a", "b"]
    row = next(row for row in tables[0].rows if row.label == "Round 1, all edits")
    by_document: dict[str, list[float]] = {}
    for candidate in run_report.candidates:
        for evaluation in candidate.evaluations:
            if candidate.round == 1 and evaluation.student == "a" and evaluation.report is not None:
                by_document.setdefault(candidate.task_id, []).append(evaluation.report.after.scores["contains"])
    change = row.change("contains")
    assert change is not None
    assert row.documents == len(by_document)
    assert change.after == pytest.approx(sum(sum(v) / len(v) for v in by_document.values()) / len(by_document))
    assert change.difference.low <= change.after - change.before <= change.difference.high
    assert "Retention quiz, all edits" in [row.label for row in tables[0].rows]


def test_best_and_worst_are_the_extremes(run_report: RunReport) -> None:
    best, worst = best_and_worst(run_report)
    rewards = [candidate.reward for candidate in run_report.candidates if candidate.reward is not None]
    assert best is not None
    assert worst is not None
    assert (best.reward, worst.reward) == (max(rewards), min(rewards))
    assert best_and_worst(RunReport(run_report.header)) == (None, None)


def test_every_failure_is_listed(run_report: RunReport) -> None:
    kinds = [problem.kind for problem in problems(run_report)]
    evaluations = [item for candidate in run_report.candidates for item in candidate.evaluations]
    assert kinds.count("evaluation failed") == sum(item.state == "failed" for item in evaluations) > 0
    assert kinds.count("edit rejected") == sum(item.rejection is not None for item in run_report.candidates) > 0
    assert kinds.count("not committed") == sum(not item.committed for item in run_report.commits) > 0
    assert kinds.count("no update") == 1
