"""Intervals, chosen edits, tables of scores and lists of failures hold the numbers they should."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.report.bootstrap import mean_interval, paired_interval, unpaired_interval
from orchestrator.report.costs import costs, totals
from orchestrator.report.data import CandidateRecord, RunReport
from orchestrator.report.failures import problems
from orchestrator.report.quiz_scores import student_scores
from orchestrator.report.rewards import chosen_ids, extremes, gain_by_document, groups, reward_by_round


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


def test_the_chosen_are_those_recorded_and_none_is_guessed() -> None:
    assert chosen_ids([_candidate(0, 0.9, chosen=False), _candidate(1, 0.1, chosen=True)]) == {"c1"}
    assert chosen_ids([_candidate(0, 0.9), _candidate(1, -0.4)]) == frozenset()


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
    assert [table.student for table in tables] == ["", "a", "b"]
    row = next(row for row in tables[1].rows if row.label == "Round 1, all edits")
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
    kept = {row.label for row in tables[1].of("retention")}
    assert {"Round 1, all edits", "Round 3, kept edits", "All rounds, all edits", "Committed"} <= kept


def test_gains_are_told_by_format_where_a_run_has_several(run_report: RunReport) -> None:
    other = tuple(
        dataclasses.replace(candidate, format="implications") if candidate.index % 2 else candidate
        for candidate in run_report.candidates
    )
    report = dataclasses.replace(run_report, candidates=other)
    tables = student_scores(report, groups(report))
    rows = {row.format: row for row in tables[0].of("quiz") if row.format is not None}
    assert set(rows) == {"implications", "self-qa"}
    values: dict[str, list[float]] = {}
    for candidate in report.candidates:
        for evaluation in candidate.evaluations:
            if candidate.format == "implications" and evaluation.report is not None:
                change = evaluation.report.after.scores["f1"] - evaluation.report.before.scores["f1"]
                values.setdefault(candidate.task_id, []).append(change)
    told = rows["implications"].change("f1")
    assert told is not None
    assert told.difference.mean == pytest.approx(sum(sum(v) / len(v) for v in values.values()) / len(values))
    assert not [row for row in student_scores(run_report, groups(run_report))[0].rows if row.format is not None]


def test_costs_are_summed_once_for_each_evaluation(run_report: RunReport) -> None:
    first = run_report.candidates[0]
    twin = dataclasses.replace(first, id="twin", index=9)
    report = RunReport(run_report.header, (first, twin))
    rows = [row for row in costs(report) if row.phase == "evaluating"]
    reports = [item.report for item in first.evaluations if item.report is not None]
    assert sum(row.evaluations for row in rows) == len(reports)
    assert totals(costs(report))["tokens"] == sum(item.cost.tokens for item in reports)
    whole = {(row.round, row.phase, row.worker) for row in costs(run_report)}
    assert {
        (1, "evaluating", "a"),
        (3, "evaluating", "b"),
        (1, "updating", "teacher"),
        (2, "writing", "teacher"),
    } <= whole
    assert (2, "updating", "teacher") not in whole


def test_unpaired_values_are_resampled_each_by_itself() -> None:
    apart = unpaired_interval([0.0, 0.1] * 10, [1.0, 1.1] * 10)
    assert apart is not None
    # Normal theory: sd 0.05 each, 1.96 x 0.05 x sqrt(2 / 20) = 0.031.
    assert apart.mean == pytest.approx(1.0)
    assert apart.high - apart.low == pytest.approx(2 * 0.031, rel=0.15)
    assert unpaired_interval([], [1.0]) is None
    single = unpaired_interval([0.0], [1.0, 1.0, 1.0])
    assert single is not None
    assert not single.excludes_zero


def test_best_and_worst_are_the_extremes(run_report: RunReport) -> None:
    best, worst = extremes(run_report)
    rewards = sorted(candidate.reward for candidate in run_report.candidates if candidate.reward is not None)
    assert [item.reward for item in best] == rewards[:-4:-1]
    assert [item.reward for item in worst] == rewards[:3]
    assert extremes(RunReport(run_report.header)) == ((), ())


def test_few_edits_are_never_best_and_worst_at_once(run_report: RunReport) -> None:
    for count in range(1, 7):
        made = tuple(_candidate(index, float(index), f"text {index}") for index in range(count))
        best, worst = extremes(RunReport(run_report.header, made))
        assert not {item.id for item in best} & {item.id for item in worst}
        assert len(best) == min(3, (count + 1) // 2)
        assert len(worst) == min(3, count // 2)


def test_every_failure_is_listed(run_report: RunReport) -> None:
    kinds = [problem.kind for problem in problems(run_report)]
    evaluations = [item for candidate in run_report.candidates for item in candidate.evaluations]
    assert kinds.count("evaluation failed") == sum(item.state == "failed" for item in evaluations) > 0
    assert kinds.count("edit rejected") == sum(item.rejection is not None for item in run_report.candidates) > 0
    assert kinds.count("not committed") == sum(not item.committed for item in run_report.commits) > 0
    assert kinds.count("no update") == 1


@pytest.mark.parametrize(
    ("reward", "consequence"), [(None, "Not evaluated."), (-1.0, "Not evaluated. Earned reward -1.")]
)
def test_an_edit_that_the_parser_rejected_is_listed_with_what_it_earned(
    run_report: RunReport, reward: float | None, consequence: str
) -> None:
    rejected = next(item for item in run_report.candidates if item.rejection is not None)
    (found,) = problems(RunReport(run_report.header, (dataclasses.replace(rejected, reward=reward),)))
    assert (found.kind, found.consequence) == ("edit rejected", consequence)


def test_what_was_overcome_is_listed_too(run_report: RunReport) -> None:
    retry = dataclasses.replace(
        run_report.events[0], kind="evaluation_retry", detail={"student": "a", "reason": "Socket closed"}
    )
    resumed = dataclasses.replace(retry, kind="run_resumed", detail={})
    found = {
        item.kind: item for item in problems(RunReport(run_report.header, events=(retry, resumed, retry, resumed)))
    }
    assert found["tried again, 2 ×"].where == "student a"
    assert found["tried again, 2 ×"].reason == "Socket closed"
    assert "resumed, 2 ×" in found
