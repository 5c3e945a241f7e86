"""The page holds what a reader needs, reaches for no network, and runs nothing that a run wrote."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from orchestrator.report.data import CandidateRecord, ReportHeader, RunReport
from orchestrator.report.html import render_html
from orchestrator.report.json_report import render_json
from orchestrator.report.pages import duration, score, signed
from tutelage.domain.evaluation import QuizResult
from tutelage.domain.run import RunState, TaskWithQuiz
from tutelage.domain.task import Quiz

HOSTILE = '</pre></style><script>alert(1)</script><img src=x onerror=alert(2)>" onload="alert(3)'
VOID = {"meta", "br", "img", "link", "input", "hr"}


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"


def _elements(page: str) -> _Elements:
    parsed = _Elements()
    parsed.feed(page)
    assert parsed.open == []
    return parsed


def _check_inert(page: str) -> None:
    parsed = _elements(page)
    assert not {"script", "img", "link", "iframe", "object", "embed", "form"} & set(parsed.names)
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "xlink:href", "action")
        if name == "href":
            assert value.startswith("#")
    assert "url(" not in page
    assert "@import" not in page


def test_a_full_report_has_all_its_parts_and_no_network(run_report: RunReport) -> None:
    page = render_html(run_report)
    _check_inert(page)
    assert page.lstrip().startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in page
    sections = re.findall(r'<section id="(\w+)"', page)
    assert sections == [
        "scores",
        "retention",
        "rewards",
        "edits",
        "candidates",
        "updates",
        "failures",
        "time",
        "repeat",
    ]
    assert set(re.findall(r'<a href="#(\w+)"', page)) == set(sections)
    for text in (
        "Reward by round",
        "Gain by document",
        "Time by phase",
        "time (seconds)",
        "Learning curves",
        "Best edit 3",
        "Worst edit 2",
        "Further worst edits",
        "All students",
        "Tokens",
        "91.3 %",
        "42.5 %",
        "no group beat",
        "Socket closed",
    ):
        assert text in page
    assert "✓ chosen" in page
    assert "learning_rate = 0.5, allowed: 1e-06 to 0.01" in page
    assert "evaluation_seeds: 2" in page


def test_an_update_says_what_it_left_out_and_what_its_trainer_logged(run_report: RunReport) -> None:
    table = render_html(run_report).partition('<section id="updates">')[2].partition("</section>")[0]
    for name in ("Unscored", "Stale", "Loss, mean (first → last)", "KL", "Peak memory", "clip_ratio/high_mean"):
        assert f">{name}</th>" in table
    cells = re.findall(r'<td class="num">([^<]*)</td>', table)
    assert cells[:8] == ["7", "3", "5", "−0.0123 (0.5 → –)", "0.000456", "48 s", "1.3 GB", "0"]
    # Nothing of what no trainer logged.
    silent = tuple(item._replace(result=dataclasses.replace(item.result, metrics={})) for item in run_report.updates)
    page = render_html(dataclasses.replace(run_report, updates=silent))
    assert "<th>Remark</th>" in page
    for name in ("KL", "Loss, mean (first → last)"):
        assert f">{name}</th>" not in page


def test_the_same_report_gives_the_same_page(run_report: RunReport) -> None:
    assert render_html(run_report) == render_html(run_report)


def test_what_a_run_wrote_is_never_markup(run_report: RunReport) -> None:
    candidates = tuple(
        dataclasses.replace(candidate, text=HOSTILE, documents=(HOSTILE,), task_title=HOSTILE, format=HOSTILE)
        for candidate in run_report.candidates
    )
    commits = tuple(dataclasses.replace(item, reason=HOSTILE, student=HOSTILE) for item in run_report.commits)
    header = dataclasses.replace(run_report.header, config_yaml=HOSTILE, versions={HOSTILE: HOSTILE})
    page = render_html(dataclasses.replace(run_report, candidates=candidates, commits=commits, header=header))
    _check_inert(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_questions_of_one_id_in_two_documents_are_shown_as_their_own(run_report: RunReport) -> None:
    """Made questions are numbered anew in each document."""

    def renamed(item: TaskWithQuiz) -> TaskWithQuiz:
        questions = tuple(
            dataclasses.replace(each, id=each.id.removeprefix(f"{item.task.id}-"), support=f"<of {item.task.id}>")
            for each in item.quiz.questions
        )
        return dataclasses.replace(item, quiz=Quiz(questions))

    def answered(candidate: CandidateRecord) -> CandidateRecord:
        def own(result: QuizResult) -> QuizResult:
            return QuizResult.of(
                tuple(
                    dataclasses.replace(each, question_id=each.question_id.removeprefix(f"{candidate.task_id}-"))
                    for each in result.answers
                )
            )

        return dataclasses.replace(
            candidate,
            evaluations=tuple(
                each
                if each.report is None
                else dataclasses.replace(
                    each,
                    report=dataclasses.replace(
                        each.report, before=own(each.report.before), after=own(each.report.after)
                    ),
                )
                for each in candidate.evaluations
            ),
        )

    header = dataclasses.replace(run_report.header, tasks=tuple(renamed(item) for item in run_report.header.tasks))
    report = dataclasses.replace(
        run_report, header=header, candidates=tuple(answered(each) for each in run_report.candidates)
    )
    page = render_html(report)
    _check_inert(page)
    titles = {item.task.id: item.task.content.title for item in run_report.header.tasks}  # type: ignore[union-attr]
    shown = [set(re.findall(r"“&lt;of ([\w-]+)&gt;”", article)) for article in page.split("<article")[1:]]
    assert len(set().union(*shown)) > 1
    for article, told in zip(page.split("<article")[1:], shown, strict=True):
        (task,) = told
        assert titles[task] in article
    assert '"support": "<of ' in render_json(report)


def test_a_run_without_any_result_still_renders(run_report: RunReport) -> None:
    summary = dataclasses.replace(
        run_report.header.summary, state=RunState.FAILED, finished_at=None, message="no teacher"
    )
    page = render_html(RunReport(ReportHeader(summary, "")))
    _check_inert(page)
    assert "No candidate has been scored." in page
    assert "run failed" in page


def test_unscored_candidates_and_missing_questions_are_shown(run_report: RunReport) -> None:
    lone = CandidateRecord("c", 1, "t", "", 0, "self-qa", "1" * 64, "some text")
    header = dataclasses.replace(run_report.header, tasks=())
    page = render_html(RunReport(header, (lone, *run_report.candidates[:3])))
    assert "no reward" in page
    assert "train-001-q1" in page


def test_scores_of_commits_are_shown_where_the_first_had_none(run_report: RunReport) -> None:
    without = dataclasses.replace(run_report.commits[0], quiz_before=QuizResult(), quiz_after=QuizResult())
    columns = ">contains (%)</th>"
    whole, rest = (
        render_html(dataclasses.replace(run_report, commits=commits)).split('id="updates"')[1]
        for commits in (run_report.commits, (without, *run_report.commits[1:]))
    )
    assert rest.count(columns) == whole.count(columns) > 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (48.2, "48 s"), (725.0, "12 min 5 s"), (11400.0, "3 h 10 min")]
)
def test_durations_read_well(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_carry_their_unit_and_a_true_minus() -> None:
    assert score(0.285, "contains") == "28.5"
    assert score(-2.5, "loglik", sign=True) == "−2.50"
    assert signed(-0.1) == "−0.100"
    assert signed(None) == "–"


def test_a_very_long_run_says_what_the_page_leaves_out(run_report: RunReport) -> None:
    many = tuple(
        dataclasses.replace(candidate, id=f"{candidate.id}-{copy}", task_id=f"{candidate.task_id}-{copy}")
        for copy in range(12)
        for candidate in run_report.candidates
    )
    page = render_html(dataclasses.replace(run_report, candidates=many))
    assert "88 more groups are in the JSON and CSV forms" in page
    assert "16 between them are left out" in page
    assert page.count('class="cand') <= 200 * 4


def test_very_many_students_are_told_together_and_some_by_themselves(run_report: RunReport) -> None:
    one = next(candidate for candidate in run_report.candidates if candidate.reward is not None)
    seen = next(evaluation for evaluation in one.evaluations if evaluation.report is not None)
    each = tuple(dataclasses.replace(seen, student=f"s{number:02d}") for number in range(40))
    page = render_html(dataclasses.replace(run_report, candidates=(dataclasses.replace(one, evaluations=each),)))
    # The first table is that of all together; students of the commits are two more.
    assert "The tables of 19 more students are in the JSON form" in page
    assert "16 more are in the JSON and CSV forms" in page
    assert page.count("Answers of student") == 6
