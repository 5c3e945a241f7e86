"""Two runs side by side: differences pair the documents that both had, and say so."""

from __future__ import annotations

import dataclasses
import json

import pytest

from orchestrator.report.comparison import REWARD, Compared, compare
from orchestrator.report.comparison_html import render_comparison_html
from orchestrator.report.comparison_json import render_comparison_json
from orchestrator.report.data import EvaluationRecord, RunReport
from tutelage.domain.evaluation import Answer, EvaluationReport, QuizResult
from tutelage.domain.task import Question, Quiz

SHIFT = 0.125


def _lifted(result: QuizResult) -> QuizResult:
    return QuizResult.of(
        tuple(
            Answer(answer.question_id, answer.text, {name: value + SHIFT for name, value in answer.scores.items()})
            for answer in result.answers
        )
    )


def _better(item: EvaluationRecord) -> EvaluationRecord:
    if not isinstance(item.report, EvaluationReport):
        return item
    reward = None if item.reward is None else item.reward + SHIFT
    return dataclasses.replace(
        item, report=dataclasses.replace(item.report, after=_lifted(item.report.after)), reward=reward
    )


def renamed(report: RunReport, run_id: str, yaml: str) -> RunReport:
    summary = dataclasses.replace(report.header.summary, run_id=run_id)
    return dataclasses.replace(report, header=dataclasses.replace(report.header, summary=summary, config_yaml=yaml))


@pytest.fixture
def better_report(run_report: RunReport) -> RunReport:
    """The same run, but every evaluation ended the same amount better; its last document is missing."""
    candidates = tuple(
        dataclasses.replace(
            candidate,
            evaluations=tuple(_better(item) for item in candidate.evaluations),
            reward=None if candidate.reward is None else candidate.reward + SHIFT,
        )
        for candidate in run_report.candidates
        if candidate.task_id != "train-008"
    )
    report = renamed(run_report, "harbour-02", "name: harbour\nrounds: 3\nseed: 8\n")
    header = dataclasses.replace(report.header, tasks=report.header.tasks[:-1])
    return dataclasses.replace(report, candidates=candidates, header=header)


def _one(measures: tuple[Compared, ...], **wanted: object) -> Compared:
    found = [item for item in measures if all(getattr(item, name) == value for name, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_shared_documents_are_paired_and_a_constant_lift_has_no_width(
    run_report: RunReport, better_report: RunReport
) -> None:
    comparison = compare(run_report, better_report)
    assert len(comparison.shared) == 7
    last = _one(comparison.measures, student="a", label="Last round, all edits", grader="contains", quiz="quiz")
    assert (last.paired, last.shared) == (True, 7)
    assert last.first is not None
    assert last.other is not None
    assert (last.first.count, last.other.count) == (8, 7)
    assert last.difference is not None
    # The documents differ far more than the lift: only pairing finds it without doubt.
    assert (last.difference.low, last.difference.mean, last.difference.high) == pytest.approx((SHIFT,) * 3)
    reward = _one(comparison.measures, label="First round, all edits", grader=REWARD)
    assert reward.difference is not None
    assert reward.difference.mean == pytest.approx(SHIFT)
    kept = _one(comparison.measures, student="a", label="Last round, all edits", grader="f1", quiz="retention")
    assert kept.difference is not None
    assert kept.difference.mean == pytest.approx(0.0)


def test_the_same_id_with_another_text_is_not_the_same_document(
    run_report: RunReport, better_report: RunReport
) -> None:
    tasks = tuple(
        dataclasses.replace(item, quiz=dataclasses.replace(item.quiz, questions=item.quiz.questions[1:]))
        for item in better_report.header.tasks
    )
    other = dataclasses.replace(better_report, header=dataclasses.replace(better_report.header, tasks=tasks))
    comparison = compare(run_report, other)
    assert comparison.shared == ()
    last = _one(comparison.measures, student="a", label="Last round, all edits", grader="contains", quiz="quiz")
    assert not last.paired
    assert last.difference is not None
    assert last.difference.high - last.difference.low > 0.01
    assert "share no document" in render_comparison_html(comparison)


def test_what_was_forgotten_of_other_questions_is_not_paired_and_the_questions_are_named(
    run_report: RunReport, better_report: RunReport
) -> None:
    asked = Quiz((Question("r1", "Which is the last month?", "December"),))
    other = dataclasses.replace(better_report, header=dataclasses.replace(better_report.header, retention_quiz=asked))
    comparison = compare(run_report, other)
    wanted = {"student": "a", "label": "Last round, all edits", "grader": "f1"}
    assert not _one(comparison.measures, quiz="retention", **wanted).paired
    assert _one(comparison.measures, quiz="quiz", **wanted).paired
    (named,) = [item for item in comparison.settings if "retention_quiz" in item.name]
    assert named.first == "none"
    assert named.other.startswith("1 questions, ")
    assert "different retention quizzes" in render_comparison_html(comparison)
    assert "different retention quizzes" not in render_comparison_html(compare(run_report, better_report))


def test_rewards_of_different_settings_are_said_to_be_of_different_kinds(
    run_report: RunReport, better_report: RunReport
) -> None:
    weighted = "name: harbour\nreward: {grader_weights: {contains: 1.0}}\n"
    one, other = renamed(run_report, "one", weighted), renamed(better_report, "two", weighted.replace("1.0", "2.0"))
    assert "not of one kind" in render_comparison_html(compare(one, other))
    assert "not of one kind" not in render_comparison_html(compare(one, renamed(better_report, "two", weighted)))


def test_a_student_of_one_run_only_is_shown_without_a_difference(run_report: RunReport) -> None:
    candidates = tuple(
        dataclasses.replace(candidate, evaluations=tuple(item for item in candidate.evaluations if item.student == "a"))
        for candidate in run_report.candidates
    )
    other = renamed(dataclasses.replace(run_report, candidates=candidates, commits=()), "lone", "students: [a]\n")
    comparison = compare(run_report, other)
    lone = _one(comparison.measures, student="b", label="Last round, all edits", grader="f1", quiz="quiz")
    assert lone.first is not None
    assert (lone.other, lone.difference) == (None, None)
    assert not [item for item in comparison.measures if item.student == "" and item.grader != REWARD]


def test_settings_that_differ_are_named(run_report: RunReport, better_report: RunReport) -> None:
    settings = {item.name: (item.first, item.other) for item in compare(run_report, better_report).settings}
    assert settings["seed"] == ("7", "8")
    assert settings["candidates"] == ("4", "not set")
    assert "rounds" not in settings


def test_the_page_and_the_json_tell_the_same(run_report: RunReport, better_report: RunReport) -> None:
    comparison = compare(run_report, better_report)
    page = render_comparison_html(comparison)
    assert page.lstrip().startswith("<!doctype html>")
    for text in ("harbour-02 less", "7 documents with the same text", "Student a: retention", "tokens trained on"):
        assert text in page.replace("<b>", "").replace("</b>", "")
    assert "<script" not in page
    document = json.loads(render_comparison_json(comparison))
    assert document["format"] == "tutelage-run-comparison-1"
    assert len(document["measures"]) == len(comparison.measures)
    assert document["measures"][0]["student"] is None
    assert render_comparison_html(comparison) == page


def test_a_run_without_results_compares_as_nothing(run_report: RunReport) -> None:
    empty = RunReport(dataclasses.replace(run_report.header, tasks=()))
    comparison = compare(run_report, empty)
    assert comparison.measures == ()
    assert "nothing that both runs measured" in render_comparison_html(comparison)
