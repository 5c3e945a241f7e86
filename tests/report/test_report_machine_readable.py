"""The JSON report and metrics.jsonl are valid JSON, complete, and never hold NaN."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

from orchestrator.report.data import RunReport
from orchestrator.report.json_report import render_json
from orchestrator.report.metrics import metrics_lines


def test_the_json_report_holds_everything(run_report: RunReport) -> None:
    document = json.loads(render_json(run_report))
    report = document["report"]
    assert document["format"] == "tutelage-run-report-1"
    assert report["header"]["summary"]["created_at"] == "2026-01-05T09:30:00+00:00"
    assert len(report["candidates"]) == len(run_report.candidates)
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
    failed = next(record for record in records if record["type"] == "evaluation" and record["state"] == "failed")
    assert failed["reward"] is None
