"""What a run cost, by round, phase and student: evaluations, tokens, seconds; shared evaluations count once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from orchestrator.report.data import EvaluationRecord, RunReport

TEACHER = "teacher"


@dataclass(frozen=True)
class CostRow:
    """Sums over one round, phase and worker."""

    round: int
    """1-based; 0 for what belongs to no round (evaluations made again for a commit)."""
    phase: Literal["writing", "evaluating", "updating", "committing"]
    worker: str
    """The student's name, or `teacher`."""
    evaluations: int = 0
    """With a report; distinct ones, since equal candidates share theirs."""
    faulty: int = 0
    """Evaluations that ended rejected or failed."""
    attempts: int = 0
    steps: int = 0
    """Optimiser steps."""
    tokens: int = 0
    """Writing: tokens written. Otherwise tokens trained on, every epoch counted."""
    supervised_tokens: int = 0
    """Of the tokens trained on, those that carried loss."""
    work_seconds: float = 0.0
    """Writing: not known. Evaluating: training and quizzes in the student. Updating: training in the teacher."""
    baselines_cached: int = 0
    """Evaluations whose quiz before was answered already."""


def costs(report: RunReport) -> tuple[CostRow, ...]:
    """Rows in the order of rounds and phases; commits last."""
    rows: list[CostRow] = []
    for number in sorted({candidate.round for candidate in report.candidates}):
        members = [candidate for candidate in report.candidates if candidate.round == number]
        written = sum(candidate.completion_tokens or 0 for candidate in members)
        rows.append(CostRow(number, "writing", TEACHER, tokens=written))
        rows += _by_student(number, "evaluating", [item for each in members for item in each.evaluations], "round")
        for round_number, result in report.updates:
            if round_number == number and result.updated:
                rows.append(CostRow(number, "updating", TEACHER, work_seconds=result.train_seconds))
    again = [item for candidate in report.candidates for item in candidate.evaluations]
    return (*rows, *_by_student(0, "committing", again, "commit"))


def totals(rows: Iterable[CostRow]) -> dict[str, float]:
    """Sums over the students of all rounds and commits: evaluations, tokens trained on, steps, seconds of work."""
    of_students = [row for row in rows if row.worker != TEACHER]
    return {
        name: sum(getattr(row, name) for row in of_students)
        for name in ("evaluations", "faulty", "attempts", "steps", "tokens", "supervised_tokens", "work_seconds")
    }


def _by_student(
    number: int, phase: Literal["evaluating", "committing"], items: Iterable[EvaluationRecord], kind: str
) -> list[CostRow]:
    distinct: dict[tuple[str, str], EvaluationRecord] = {}
    for item in items:
        # A rejected edit has no evaluation: its rows carry no id.
        if item.phase == kind and item.evaluation_id:
            distinct.setdefault((item.student, item.evaluation_id), item)
    rows = []
    for student in sorted({student for student, _ in distinct}):
        mine = [item for (name, _), item in distinct.items() if name == student]
        reports = [item.report for item in mine if item.report is not None]
        rows.append(
            CostRow(
                number,
                phase,
                student,
                evaluations=len(reports),
                faulty=len(mine) - len(reports),
                attempts=sum(item.attempts for item in mine),
                steps=sum(report.cost.steps for report in reports),
                tokens=sum(report.cost.tokens for report in reports),
                supervised_tokens=sum(report.cost.supervised_tokens for report in reports),
                work_seconds=sum(report.cost.train_seconds + report.cost.quiz_seconds for report in reports),
                baselines_cached=sum(report.cost.baseline_cached for report in reports),
            )
        )
    return rows
