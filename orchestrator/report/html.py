"""The report as one HTML page: no network, no scripts, everything that comes from a run escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from orchestrator.report.answers import first_reports
from orchestrator.report.costs import costs, totals
from orchestrator.report.data import CandidateRecord, EvaluationRecord, RunReport
from orchestrator.report.failures import problems
from orchestrator.report.pages import template, unit
from orchestrator.report.quiz_scores import EVERYONE, QuizKind, StudentScores, student_scores
from orchestrator.report.rewards import (
    DocumentGain,
    RoundReward,
    extremes,
    gain_by_document,
    groups,
    reward_by_round,
)
from orchestrator.report.svg import BarRow, DotRow, Series, dot_rows, interval_plot, stacked_bars
from tutelage.domain.evaluation import Answer, InnerLoopSettings
from tutelage.domain.made_quiz import MADE
from tutelage.domain.run import NO_UPDATE
from tutelage.domain.task import Question

_CORRECT_FROM = 0.5
_LINES = 6
_HALF = 520.0
_GROUPS = 200
"""Groups whose candidates are shown; a browser has to lay them all out."""
_TABLES = 24
"""Students whose scores stand in a table of their own, all together counted as one."""
_EVALUATIONS = 24
"""Evaluations that are listed under one candidate."""
_DOCUMENTS = 80
"""Documents in the plot of gains."""


@dataclass(frozen=True)
class AnsweredQuestion:
    question: str
    gold: str
    support: str
    """The sentence that supports the gold answer; empty where not known."""
    made: bool
    """Whether the teacher's first policy made it."""
    before: str
    after: str
    right_before: bool | None
    right_after: bool | None


def render_html(report: RunReport) -> str:
    """A self-contained page; the same report gives the same bytes."""
    made = groups(report)
    rounds = reward_by_round(made)
    scores = student_scores(report, made)
    questions = _questions(report)
    best, worst = extremes(report)
    spent = costs(report)
    return template("page.html").render(
        report=report,
        no_update=NO_UPDATE,
        titles={candidate.task_id: candidate.task_title for candidate in report.candidates},
        summary=report.header.summary,
        rounds=rounds,
        groups=made[:_GROUPS],
        most_evaluations=_EVALUATIONS,
        groups_left_out=max(0, len(made) - _GROUPS),
        documents_left_out=max(0, len({group.task_id for group in made}) - _DOCUMENTS),
        asked=_asked(report),
        scores=scores[:_TABLES],
        tables_left_out=max(0, len(scores) - _TABLES),
        unit=unit,
        reward_plot=_reward_plot(rounds),
        curves=_curves(scores, "quiz"),
        retention_curves=_curves(scores, "retention"),
        gain_plot=_gain_plot(gain_by_document(made)),
        time_plot=_time_plot(report),
        extremes=[
            (f"{name} edit", rank, candidate, _answer_tables(candidate, questions))
            for name, found in (("Best", best), ("Worst", worst))
            for rank, candidate in enumerate(found, start=1)
        ],
        costs=spent,
        totals=totals(spent),
        problems=problems(report),
        settings=_settings(report),
        seconds=_seconds(report),
        logged_names=sorted({name for _, result in report.updates for name in result.metrics}),
        reward_scale=max([abs(item.reward) for item in report.candidates if item.reward is not None] or [1.0]) or 1.0,
        first_reports=first_reports,
    )


def _seconds(report: RunReport) -> float | None:
    summary = report.header.summary
    if summary.finished_at is not None:
        return (summary.finished_at - summary.created_at).total_seconds()
    return sum(phase.seconds for phase in report.phases) if report.phases else None


def _reward_plot(rounds: Sequence[RoundReward]) -> Markup:
    return interval_plot(
        [f"{item.round}" for item in rounds],
        [
            Series("mean of all edits", tuple(item.mean for item in rounds)),
            Series("best edit of each document", tuple(item.best for item in rounds)),
        ],
        x_label="round",
        y_label="reward (gain over the untouched student)",
    )


def _curves(scores: Sequence[StudentScores], quiz: QuizKind) -> list[tuple[str, Markup]]:
    """By grader the change over all edits of each round, a line a student; nothing for a single round."""
    drawn = []
    # More lines than colours would tell nothing: then all students together are the one line.
    shown = scores if len(scores) <= _LINES else [table for table in scores if table.student == EVERYONE]
    numbers = sorted({row.round for table in scores for row in table.of(quiz) if row.round is not None})
    graders = dict.fromkeys(grader for table in scores for grader in table.graders) if len(numbers) > 1 else {}
    for grader in graders:
        scale = 1.0 if grader == "loglik" else 100.0
        series = []
        for table in shown:
            by_round = {
                row.round: change.difference.scaled(scale)
                for row in table.of(quiz)
                if row.edits == "all" and row.round is not None and (change := row.change(grader)) is not None
            }
            series.append(Series(table.student or "all students", tuple(by_round.get(number) for number in numbers)))
        label = f"change in {grader} ({unit(grader)})"
        plot = interval_plot([str(number) for number in numbers], series, x_label="round", y_label=label, width=_HALF)
        if plot:
            drawn.append((grader, plot))
    return drawn


def _gain_plot(gains: Sequence[DocumentGain]) -> Markup:
    if len(gains) > _DOCUMENTS:
        # Those with the greatest and the least: what is in between is in the tables.
        gains = (*gains[: _DOCUMENTS // 2], *gains[-_DOCUMENTS // 2 :])
    numbers = sorted({number for gain in gains for number, _ in gain.by_round})
    rows = [
        DotRow(gain.title or gain.task_id, tuple((numbers.index(number), values) for number, values in gain.by_round))
        for gain in gains
    ]
    names = [f"round {number}" for number in numbers]
    return dot_rows(
        rows, names, x_label="reward (dots: candidates; bar: their mean)", title="Reward of each candidate by document"
    )


def _time_plot(report: RunReport) -> Markup:
    names = list(dict.fromkeys(phase.phase for phase in report.phases))
    rows = []
    for number in sorted({phase.round for phase in report.phases}, key=lambda item: (item == 0, item)):
        parts = tuple(
            sum(phase.seconds for phase in report.phases if phase.round == number and phase.phase == name)
            for name in names
        )
        rows.append(BarRow(f"round {number}" if number else "whole run", parts))
    return stacked_bars(rows, names, x_label="time (seconds)", title="Time by phase")


def _questions(report: RunReport) -> dict[tuple[str, str], Question]:
    """By task and id: ids are unique within their quiz only."""
    return {(item.task.id, question.id): question for item in report.header.tasks for question in item.quiz.questions}


def _asked(report: RunReport) -> str:
    """How many questions there are, and whose."""
    ids = [question.id for item in report.header.tasks for question in item.quiz.questions]
    made = sum(identity.startswith(MADE) for identity in ids)
    return f"{len(ids)} questions: {len(ids) - made} given, {made} made by the teacher's first policy"


def _answer_tables(
    candidate: CandidateRecord, questions: dict[tuple[str, str], Question]
) -> list[tuple[EvaluationRecord, list[AnsweredQuestion]]]:
    tables = []
    for evaluation in first_reports(candidate):
        if evaluation.report is None:
            continue
        earlier = {answer.question_id: answer for answer in evaluation.report.before.answers}
        rows = []
        for answer in evaluation.report.after.answers:
            question = questions.get((candidate.task_id, answer.question_id))
            before = earlier.get(answer.question_id)
            rows.append(
                AnsweredQuestion(
                    question=question.text if question else answer.question_id,
                    gold=question.answer if question else "",
                    support=question.support if question else "",
                    made=answer.question_id.startswith(MADE),
                    before=before.text if before else "",
                    after=answer.text,
                    right_before=_right(before),
                    right_after=_right(answer),
                )
            )
        tables.append((evaluation, rows))
    return tables


def _right(answer: Answer | None) -> bool | None:
    if answer is None:
        return None
    for grader in ("contains", "exact", "f1"):
        if grader in answer.scores:
            return answer.scores[grader] >= _CORRECT_FROM
    return None


def _settings(report: RunReport) -> list[tuple[InnerLoopSettings, int]]:
    """Inner-loop settings that were really used, the most frequent first, with how often."""
    used = Counter(
        evaluation.report.effective_settings
        for candidate in report.candidates
        for evaluation in candidate.evaluations
        if evaluation.report is not None
    )
    return used.most_common()
