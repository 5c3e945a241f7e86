"""Quiz scores before and after for each student, paired by document, with bootstrap intervals of the difference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.report.bootstrap import Interval, paired_interval
from orchestrator.report.data import EvaluationRecord, RunReport
from orchestrator.report.rewards import Group
from tutelage.domain.evaluation import QuizResult

_ORDER = ("contains", "exact", "f1", "loglik")


@dataclass(frozen=True)
class ScoreChange:
    grader: str
    before: float
    after: float
    difference: Interval


@dataclass(frozen=True)
class ScoreRow:
    """What one kind of training did to one student's quiz."""

    label: str
    documents: int
    changes: tuple[ScoreChange, ...]

    def change(self, grader: str) -> ScoreChange | None:
        return next((change for change in self.changes if change.grader == grader), None)


@dataclass(frozen=True)
class StudentScores:
    student: str
    graders: tuple[str, ...]
    rows: tuple[ScoreRow, ...]


_Pair = tuple[str, QuizResult, QuizResult]


def student_scores(report: RunReport, made: Sequence[Group]) -> tuple[StudentScores, ...]:
    """One table a student: all and kept edits of each round, what was committed, and the retention quiz."""
    found = {evaluation.student for candidate in report.candidates for evaluation in candidate.evaluations}
    found |= {commit.student for commit in report.commits}
    tables = []
    for student in sorted(found):
        rows = [row for row in _rows(report, made, student) if row.changes]
        names = {change.grader for row in rows for change in row.changes}
        graders = [name for name in _ORDER if name in names] + sorted(names - set(_ORDER))
        if rows:
            tables.append(StudentScores(student, tuple(graders), tuple(rows)))
    return tuple(tables)


def _rows(report: RunReport, made: Sequence[Group], student: str) -> Iterable[ScoreRow]:
    retention: list[_Pair] = []
    for number in sorted({group.round for group in made}):
        everything: list[_Pair] = []
        kept: list[_Pair] = []
        for group in made:
            if group.round != number:
                continue
            for candidate in group.candidates:
                evaluations = [item for item in candidate.evaluations if item.student == student]
                pairs = list(_pairs(group.task_id, evaluations))
                everything += pairs
                if candidate.id in group.chosen_ids:
                    kept += pairs
                retention += _retention_pairs(group.task_id, evaluations)
        yield _row(f"Round {number}, all edits", everything)
        yield _row(f"Round {number}, kept edits", kept)
    commits = [item for item in report.commits if item.student == student and item.committed]
    yield _row("Committed", [(item.task_id, item.quiz_before, item.quiz_after) for item in commits])
    yield _row("Retention quiz, all edits", retention)


def _pairs(task_id: str, evaluations: Iterable[EvaluationRecord]) -> Iterable[_Pair]:
    for evaluation in evaluations:
        if evaluation.report is not None and evaluation.phase == "round":
            yield task_id, evaluation.report.before, evaluation.report.after


def _retention_pairs(task_id: str, evaluations: Iterable[EvaluationRecord]) -> Iterable[_Pair]:
    for evaluation in evaluations:
        if evaluation.report is not None and evaluation.phase == "round" and evaluation.report.retention_after.answers:
            yield task_id, evaluation.report.retention_before, evaluation.report.retention_after


def _row(label: str, pairs: Sequence[_Pair]) -> ScoreRow:
    names = list(dict.fromkeys(name for _, before, after in pairs for name in before.scores if name in after.scores))
    changes = []
    documents: set[str] = set()
    for name in names:
        # Documents, not questions, are resampled: questions of one document rise and fall together.
        by_document: dict[str, list[tuple[float, float]]] = {}
        for task_id, before, after in pairs:
            if name in before.scores and name in after.scores:
                by_document.setdefault(task_id, []).append((before.scores[name], after.scores[name]))
        befores = [_mean([pair[0] for pair in values]) for values in by_document.values()]
        afters = [_mean([pair[1] for pair in values]) for values in by_document.values()]
        difference = paired_interval(befores, afters)
        if difference is not None:
            changes.append(ScoreChange(name, _mean(befores), _mean(afters), difference))
            documents |= set(by_document)
    return ScoreRow(label, len(documents), tuple(changes))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
