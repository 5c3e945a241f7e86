"""The JSON report, metrics.jsonl and the CSV table are well-formed and complete, and never hold NaN."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import Counter

from orchestrator.report.costs import costs, totals
from orchestrator.report.csv_table import render_csv
from orchestrator.report.data import RunReport
from orchestrator.report.json_report import render_json
from orchestrator.report.metrics import metrics_lines


def test_the_json_report_holds_everything(run_report: RunReport) -> None:
    document = json.loads(render_json(run_report))
    report = document["report"]
    assert document["format"] == "tutelage-run-report-1"
    assert report["header"]["summary"]["created_at"] == "2026-01-05T09:30:00+00:00"
    assert len(report["candidates"]) == len(run_report.candidates)
    assert report["updates"][0]["result"]["metrics"]["kl"] == 0.000456
    assert report["updates"][1]["result"]["updated"] is False
    assert report["candidates"][0]["evaluations"][0]["report"]["before"]["scores"].keys() >= {"contains", "loglik"}


def test_numbers_that_are_not_finite_become_null(run_report: RunReport) -> None:
    broken = dataclasses.replace(run_report.candidates[0], reward=float("nan"))
    document = json.loads(render_json(RunReport(run_report.header, (broken,))))
    assert document["report"]["candidates"][0]["reward"] is None


def test_metrics_have_one_line_for_each_thing(run_report: RunReport) -> None:
    lines = list(metrics_lines(run_report))
    assert not any("\n" in line for line in lines)
    records = [json.loads(line) for line in lines]
    counts = Counter(record["type"] for record in records)
    evaluations = sum(len(candidate.evaluations) for candidate in run_report.candidates)
    assert counts == {
        "evaluation": evaluations,
        "group": 24,
        "round": 3,
        "update": 2,
        "commit": len(run_report.commits),
    }
    assert {record["run_id"] for record in records} == {"harbour-01"}
    rounds = [record for record in records if record["type"] == "round"]
    assert rounds[0]["seconds"]["evaluating"] == 704.0
    assert rounds[0]["mean_reward"]["low"] <= rounds[0]["mean_reward"]["mean"] <= rounds[0]["mean_reward"]["high"]
    update, unchanged = (record for record in records if record["type"] == "update")
    assert (update["unscored_candidates"], update["stale_candidates"]) == (3, 5)
    assert (update["peak_memory_bytes"], update["peak_gpu_memory_bytes"]) == (1_310_000_000, None)
    assert update["metrics"] == {"loss": -0.0123, "kl": 0.000456, "clip_ratio/high_mean": 0.25}
    assert (update["first_loss"], update["last_loss"]) == (0.5, None)
    assert (unchanged["metrics"], unchanged["first_loss"]) == ({}, None)
    failed = next(record for record in records if record["type"] == "evaluation" and record["state"] == "failed")
    assert failed["reward"] is None


def test_the_json_report_holds_the_statistics(run_report: RunReport) -> None:
    statistics = json.loads(render_json(run_report))["statistics"]
    gains = statistics["gains"]
    assert {(item["student"], item["quiz"]) for item in gains} == {
        (student, quiz) for student in (None, "a", "b") for quiz in ("quiz", "retention")
    }
    one = next(
        item
        for item in gains
        if (item["student"], item["quiz"], item["edits"], item["round"], item["grader"])
        == ("a", "quiz", "all", 2, "loglik")
    )
    assert one["after"] - one["before"] - one["difference"]["mean"] < 1e-9
    assert one["difference"]["low"] < one["difference"]["mean"] < one["difference"]["high"]
    assert statistics["totals"]["tokens"] == sum(row["tokens"] for row in statistics["costs"] if row["worker"] in "ab")
    assert {"edit rejected", "evaluation failed", "not committed", "no update"} <= {
        item["kind"] for item in statistics["problems"]
    }


def test_the_table_has_a_row_for_each_evaluation_and_each_edit_without_one(run_report: RunReport) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(run_report), newline="")))
    evaluations = [item for candidate in run_report.candidates for item in candidate.evaluations]
    lone = [candidate for candidate in run_report.candidates if not candidate.evaluations]
    assert lone
    assert len(rows) == len(evaluations) + len(lone)
    by_id = {row["evaluation_id"]: row for row in rows if row["evaluation_id"]}
    for item in evaluations:
        row = by_id[item.evaluation_id]
        assert row["state"] == item.state
        assert (float(row["reward"]) if row["reward"] else None) == item.reward
        if item.report is not None:
            assert float(row["gain_contains"]) == (
                item.report.after.scores["contains"] - item.report.before.scores["contains"]
            )
            assert int(row["tokens"]) == item.report.cost.tokens
    assert {row["rejection"] for row in rows if not row["evaluation_id"]} == {"out_of_bounds"}


def test_costs_of_the_table_add_up_over_pairs_of_student_and_evaluation(run_report: RunReport) -> None:
    # Students of one model have equal keys; equal candidates share evaluations.
    first = next(item for item in run_report.candidates if len(item.evaluations) == 4)
    (a, *_), (b, *_) = ([item for item in first.evaluations if item.student == name] for name in ("a", "b"))
    alike = dataclasses.replace(first, evaluations=(a, dataclasses.replace(b, evaluation_id=a.evaluation_id)))
    report = RunReport(run_report.header, (alike, dataclasses.replace(alike, id="twin", index=9)))
    rows = list(csv.DictReader(io.StringIO(render_csv(report), newline="")))
    tokens = {(row["student"], row["evaluation_id"]): int(row["tokens"]) for row in rows}
    assert len(rows) == 4
    assert sum(tokens.values()) == totals(costs(report))["tokens"]


def test_no_text_of_the_table_is_a_formula(run_report: RunReport) -> None:
    hostile = dataclasses.replace(run_report.candidates[0], task_title='=HYPERLINK("http://x","y")', reward=-0.5)
    rows = list(csv.DictReader(io.StringIO(render_csv(RunReport(run_report.header, (hostile,))), newline="")))
    assert rows[0]["task_title"].startswith("'=")
    assert rows[0]["candidate_reward"] == "-0.5"
