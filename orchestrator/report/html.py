"""The report as one HTML page: no network, no scripts, everything that comes from a run escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.report.data import CandidateRecord, EvaluationRecord, RunReport
from orchestrator.report.failures import describe_rejection, problems
from orchestrator.report.quiz_scores import student_scores
from orchestrator.report.rewards import (
    DocumentGain,
    RoundReward,
    best_and_worst,
    gain_by_document,
    groups,
    reward_by_round,
)
from orchestrator.report.svg import BarRow, DotRow, Series, dot_rows, interval_plot, stacked_bars
from tutelage.domain.evaluation import Answer, InnerLoopSettings
from tutelage.domain.task import Question

MINUS = "−"
_CORRECT_FROM = 0.5


@dataclass(frozen=True)
class AnsweredQuestion:
    question: str
    gold: str
    before: str
    after: str
    right_before: bool | None
    right_after: bool | None


def render_html(report: RunReport) -> str:
    """A self-contained page; the same report gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("orchestrator", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "signed": signed,
        "score": score,
        "duration": duration,
        "short": short,
        "rejection": describe_rejection,
    }
    made = groups(report)
    rounds = reward_by_round(made)
    questions = _questions(report)
    best, worst = best_and_worst(report)
    return environment.get_template("page.html").render(
        report=report,
        summary=report.header.summary,
        rounds=rounds,
        groups=made,
        scores=student_scores(report, made),
        reward_plot=_reward_plot(rounds),
        gain_plot=_gain_plot(gain_by_document(made)),
        time_plot=_time_plot(report),
        extremes=[
            (name, candidate, _answer_tables(candidate, questions))
            for name, candidate in (("Best", best), ("Worst", worst))
            if candidate is not None
        ],
        problems=problems(report),
        settings=_settings(report),
        seconds=_seconds(report),
        reward_scale=max([abs(item.reward) for item in report.candidates if item.reward is not None] or [1.0]) or 1.0,
        first_reports=_first_reports,
    )


def signed(value: float | None, digits: int = 3) -> str:
    """`+0.125`, with a true minus sign; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:+.{digits}f}".replace("-", MINUS)


def score(value: float, grader: str, *, sign: bool = False) -> str:
    """A mean score in the grader's unit: nats a token for loglik, per cent for all others."""
    scaled, digits = (value, 2) if grader == "loglik" else (value * 100, 1)
    return (f"{scaled:+.{digits}f}" if sign else f"{scaled:.{digits}f}").replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Such as `48 s`, `12 min 5 s` or `3 h 10 min`."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short(identifier: str, length: int = 12) -> str:
    """The head of a hash; shorter names stay whole."""
    return identifier if len(identifier) <= length + 4 else identifier[:length] + "…"


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


def _gain_plot(gains: Sequence[DocumentGain]) -> Markup:
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


def _questions(report: RunReport) -> dict[str, Question]:
    return {question.id: question for item in report.header.tasks for question in item.quiz.questions}


def _first_reports(candidate: CandidateRecord) -> list[EvaluationRecord]:
    """The first evaluation with a report of each student."""
    first: dict[str, EvaluationRecord] = {}
    for evaluation in candidate.evaluations:
        if evaluation.report is not None:
            first.setdefault(evaluation.student, evaluation)
    return list(first.values())


def _answer_tables(
    candidate: CandidateRecord, questions: dict[str, Question]
) -> list[tuple[EvaluationRecord, list[AnsweredQuestion]]]:
    tables = []
    for evaluation in _first_reports(candidate):
        if evaluation.report is None:
            continue
        earlier = {answer.question_id: answer for answer in evaluation.report.before.answers}
        rows = []
        for answer in evaluation.report.after.answers:
            question, before = questions.get(answer.question_id), earlier.get(answer.question_id)
            rows.append(
                AnsweredQuestion(
                    question=question.text if question else answer.question_id,
                    gold=question.answer if question else "",
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
