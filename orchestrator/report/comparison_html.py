"""Two runs side by side as one HTML page: no network, no scripts, light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from markupsafe import Markup

from orchestrator.report.comparison import REWARD, Compared, Comparison
from orchestrator.report.data import RunReport
from orchestrator.report.pages import score, signed, template, unit
from orchestrator.report.rewards import groups, reward_by_round
from orchestrator.report.svg import IntervalRow, Series, interval_plot, interval_rows


def render_comparison_html(comparison: Comparison) -> str:
    """A self-contained page; the same comparison gives the same bytes."""
    return template("comparison.html").render(
        comparison=comparison,
        runs=[_run(comparison.first), _run(comparison.other)],
        reward_plot=_reward_plot(comparison),
        differences=_differences(comparison.measures),
        tables=[
            (title, list(items))
            for title, items in groupby(comparison.measures, key=lambda item: _table(item, comparison))
        ],
        amount=_amount,
        measure_unit=_unit,
        REWARD=REWARD,
    )  # fmt: skip


def _run(report: RunReport) -> dict[str, object]:
    summary = report.header.summary
    ended = summary.finished_at
    return {
        "summary": summary,
        "tasks": len(report.header.tasks),
        "edits": len(report.candidates),
        "committed": sum(item.committed for item in report.commits),
        "seconds": (ended - summary.created_at).total_seconds() if ended else None,
    }


def _table(item: Compared, comparison: Comparison) -> tuple[str, str]:
    who = f"Student {item.student}" if item.student else "All students"
    if item.grader == REWARD:
        earned = "What the teacher earned: the mean reward of a document's scored edits."
        other = "" if comparison.rewarded_alike else " The settings of the reward differ: the two are not of one kind."
        return "Reward", earned + other
    if item.quiz == "quiz":
        return f"{who}: quiz", "Change of the score on the documents' own questions."
    forgotten = "Change of the score on questions about other things; below zero is forgotten."
    other = "" if comparison.asked_to_remember_alike else " The two had different retention quizzes."
    return f"{who}: retention", forgotten + other


def _amount(value: float, grader: str) -> str:
    return signed(value) if grader == REWARD else score(value, grader, sign=True)


def _unit(grader: str) -> str:
    return "" if grader == REWARD else f" ({unit(grader)})"


def _reward_plot(comparison: Comparison) -> Markup:
    sides = [reward_by_round(groups(report)) for report in (comparison.first, comparison.other)]
    numbers = sorted({item.round for rounds in sides for item in rounds})
    names = [report.header.summary.run_id for report in (comparison.first, comparison.other)]
    series = []
    for name, rounds in zip(names, sides, strict=True):
        by_round = {item.round: item.mean for item in rounds}
        series.append(Series(name, tuple(by_round.get(number) for number in numbers)))
    return interval_plot([str(number) for number in numbers], series, x_label="round", y_label="mean reward")


def _differences(measures: Iterable[Compared]) -> list[tuple[str, Markup]]:
    """By grader the differences on the quizzes, a row each."""
    rows: dict[str, list[IntervalRow]] = {}
    for item in measures:
        if item.difference is None or item.quiz != "quiz":
            continue
        scale = 1.0 if item.grader in (REWARD, "loglik") else 100.0
        label = f"{item.student or 'all'}: {item.label}" if item.grader != REWARD else item.label
        rows.setdefault(item.grader, []).append(IntervalRow(label, item.difference.scaled(scale)))
    return [
        (grader, interval_rows(found, x_label=f"difference in {grader}{_unit(grader)}", title=f"Differences, {grader}"))
        for grader, found in rows.items()
    ]
