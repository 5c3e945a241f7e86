"""What the demo shows is read from the report as it is really rendered."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from orchestrator.report.data import CandidateRecord, CommitRecord, ReportHeader, RunReport
from orchestrator.report.json_report import render_json
from tutelage.cli import demo_results
from tutelage.domain.evaluation import Answer, QuizResult
from tutelage.domain.run import RunPhase, RunState, RunSummary, TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task

_AT = datetime(2026, 5, 4, tzinfo=UTC)
_SUMMARY = RunSummary("demo", RunState.DONE, RunPhase.ENDED, 1, 1, 2, 2, 0.3, 0.0, "", "", _AT, _AT)
_QUESTIONS = (Question("q1", "Who is the mayor?", "Bel Tarn"), Question("q2", "How many mills?", "four"))
_TASKS = [TaskWithQuiz(Task("d1", DocumentTask("Orrin", "...")), Quiz(_QUESTIONS))]


def quiz(first: float, second: float) -> QuizResult:
    return QuizResult.of(
        (
            Answer("q1", "?", {"contains": first, "loglik": -3.0}),
            Answer("q2", "?", {"contains": second, "loglik": -2.0}),
        )
    )


def rendered(committed: bool) -> dict[str, Any]:
    candidates = tuple(
        CandidateRecord(f"c{n}", 1, "d1", "Orrin", n, "self-qa", "p", f"notes {n}", reward=reward)
        for n, reward in enumerate((None, 0.1, 0.3))
    )
    commit = CommitRecord("a", "d1", "c2", "e", committed, "too little", "f" * 64, "", quiz(0, 0), quiz(0, 1))
    report = RunReport(ReportHeader(_SUMMARY, ""), candidates, commits=(commit,))
    return dict(demo_results.report_tree(render_json(report).encode()))


def shown(report: dict[str, Any], width: int = 120) -> str:
    output = io.StringIO()
    console = Console(file=output, width=width)
    demo_results.show_edit(console, report)
    demo_results.show_scores(console, report)
    return output.getvalue()


def test_best_edit_and_scores() -> None:
    text = shown(rendered(committed=True))
    assert "notes 2" in text
    assert "+0.300" in text
    assert "0.00 > 0.50" in text
    assert "kept, ffffffff" in text


def test_a_narrow_terminal_still_shows_every_score() -> None:
    report = rendered(committed=True)
    for candidate in report["candidates"]:
        candidate["task_title"] = "A Title That Is Much Longer Than Its Column"
    for commit in report["commits"]:
        for moment, score in (("quiz_before", -12.34), ("quiz_after", -5.67)):
            commit[moment]["scores"] |= {"f1": 0.25, "loglik": score}
    text = shown(report, width=80)
    for cell in ("0.00 > 0.50", "0.25 > 0.25", "-12.34 > -5.67", "kept"):
        assert cell in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_document_without_a_scored_edit_hides_no_scores_of_the_others() -> None:
    report = rendered(committed=True)
    (kept,) = report["commits"]
    nothing: dict[str, Any] = {"answers": [], "scores": {}}
    first = kept | {"student": "Z", "committed": False, "quiz_before": nothing, "quiz_after": nothing}
    text = shown({**report, "commits": [first, kept]})
    assert "0.00 > 0.50" in text
    assert "Z" in text


def test_the_question_that_gained_most() -> None:
    found = demo_results.question_to_show(rendered(committed=True), _TASKS)
    assert found is not None
    assert (found.student, found.question.id, found.commit) == ("a", "q2", True)


def test_nothing_kept_is_said() -> None:
    report = rendered(committed=False)
    assert "not kept: too little" in shown(report)
    found = demo_results.question_to_show(report, _TASKS)
    assert found is not None
    assert not found.commit


@pytest.mark.parametrize("part", ["candidates", "commits"])
def test_a_run_without_results_is_no_error(part: str) -> None:
    report = {**rendered(committed=True), part: []}
    assert shown(report)
