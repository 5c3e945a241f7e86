"""Whose answers a report holds: all in a run of some thousand evaluations, else some of the best and worst edits.

Answers are nearly all of a report's size: those of 100,000 evaluations are most of a gigabyte, and nobody reads them.
Every score of every evaluation stays, so intervals and tables are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.report.data import CandidateRecord, CommitRecord, EvaluationRecord, RunReport
from orchestrator.report.rewards import extremes
from tutelage.domain.evaluation import EvaluationReport, QuizResult

MOST = 5000
"""Evaluations of a run up to which its report holds the answers of all."""
STUDENTS = 6
"""Students whose answers are shown of one edit."""


def first_reports(candidate: CandidateRecord) -> list[EvaluationRecord]:
    """The first evaluation with a report of each of the first students."""
    first: dict[str, EvaluationRecord] = {}
    for evaluation in candidate.evaluations:
        if evaluation.report is not None:
            first.setdefault(evaluation.student, evaluation)
    return list(first.values())[:STUDENTS]


def without_answers(report: EvaluationReport) -> EvaluationReport:
    """The scores without what they were given for."""
    return replace(
        report,
        before=QuizResult((), report.before.scores),
        after=QuizResult((), report.after.scores),
        retention_before=QuizResult((), report.retention_before.scores),
        retention_after=QuizResult((), report.retention_after.scores),
    )


def without_quizzes(commit: CommitRecord) -> CommitRecord:
    """The same for a commit."""
    before, after = QuizResult((), commit.quiz_before.scores), QuizResult((), commit.quiz_after.scores)
    retention = QuizResult((), commit.retention_after.scores)
    return replace(commit, quiz_before=before, quiz_after=after, retention_after=retention)


def to_show(report: RunReport) -> tuple[EvaluationRecord, ...]:
    """The evaluations whose answers stand under the best and the worst edits."""
    best, worst = extremes(report)
    return tuple(evaluation for candidate in (*best, *worst) for evaluation in first_reports(candidate))


def with_answers(report: RunReport, whole: Mapping[tuple[str, str], EvaluationReport]) -> RunReport:
    """The report with whole evaluations, by (student, evaluation), in place of those without answers."""

    def answered(candidate: CandidateRecord) -> CandidateRecord:
        keys = [(each.student, each.evaluation_id) for each in candidate.evaluations]
        if not any(key in whole for key in keys):
            return candidate
        pairs = zip(candidate.evaluations, keys, strict=True)
        return replace(
            candidate, evaluations=tuple(replace(each, report=whole.get(key, each.report)) for each, key in pairs)
        )

    return replace(report, candidates=tuple(answered(candidate) for candidate in report.candidates))
