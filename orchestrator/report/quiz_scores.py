"""Quiz scores before and after, by student, round and format: paired by document, with 95 % bootstrap intervals.

A document's scores are averaged first (over its candidates and repeats), then documents are resampled: questions and
candidates of one document rise and fall together, so that counting them singly would make intervals too narrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from orchestrator.report.bootstrap import Interval, paired_interval
from orchestrator.report.data import EvaluationRecord, RunReport
from orchestrator.report.rewards import Group
from tutelage.domain.evaluation import QuizResult

ORDER = ("contains", "exact", "f1", "loglik")
"""In which order graders are shown; others follow by name."""
EVERYONE = ""
"""Stands for all students together; a document's mean is then over students, too."""

Edits = Literal["all", "kept", "committed"]
QuizKind = Literal["quiz", "retention"]


class Pair(NamedTuple):
    """One quiz taken before and after."""

    task_id: str
    before: QuizResult
    after: QuizResult


@dataclass(frozen=True)
class ScoreChange:
    grader: str
    before: float
    after: float
    difference: Interval


@dataclass(frozen=True)
class ScoreRow:
    """What one kind of training did to one student's quiz; None means over all rounds or formats."""

    label: str
    documents: int
    changes: tuple[ScoreChange, ...]
    quiz: QuizKind = "quiz"
    edits: Edits = "all"
    round: int | None = None
    format: str | None = None

    def change(self, grader: str) -> ScoreChange | None:
        return next((change for change in self.changes if change.grader == grader), None)


@dataclass(frozen=True)
class StudentScores:
    student: str
    """`EVERYONE` for all together."""
    graders: tuple[str, ...]
    rows: tuple[ScoreRow, ...]

    def of(self, quiz: QuizKind) -> tuple[ScoreRow, ...]:
        return tuple(row for row in self.rows if row.quiz == quiz)


def student_scores(report: RunReport, made: Sequence[Group]) -> tuple[StudentScores, ...]:
    """One table a student, and before them one of all together when there are several."""
    found = {evaluation.student for candidate in report.candidates for evaluation in candidate.evaluations}
    found |= {commit.student for commit in report.commits}
    tables = []
    for student in ([EVERYONE] if len(found) > 1 else []) + sorted(found):
        rows = [row for row in _rows(report, made, student) if row.changes]
        if rows:
            tables.append(StudentScores(student, grader_order(rows), tuple(rows)))
    return tuple(tables)


def grader_order(rows: Iterable[ScoreRow]) -> tuple[str, ...]:
    """The graders of the rows: the known ones first, then the others by name."""
    names = {change.grader for row in rows for change in row.changes}
    return (*(name for name in ORDER if name in names), *sorted(names - set(ORDER)))


def document_scores(pairs: Iterable[Pair], grader: str) -> dict[str, tuple[float, float]]:
    """A document's mean score before and after, by a grader that graded both."""
    found: dict[str, list[tuple[float, float]]] = {}
    for task_id, before, after in pairs:
        if grader in before.scores and grader in after.scores:
            found.setdefault(task_id, []).append((before.scores[grader], after.scores[grader]))
    return {
        task_id: (mean([pair[0] for pair in values]), mean([pair[1] for pair in values]))
        for task_id, values in found.items()
    }


def score_changes(pairs: Sequence[Pair]) -> tuple[ScoreChange, ...]:
    """The change by each grader, documents resampled."""
    changes = []
    for name in dict.fromkeys(name for pair in pairs for name in pair.before.scores if name in pair.after.scores):
        documents = document_scores(pairs, name)
        befores = [before for before, _ in documents.values()]
        afters = [after for _, after in documents.values()]
        difference = paired_interval(befores, afters)
        if difference is not None:
            changes.append(ScoreChange(name, mean(befores), mean(afters), difference))
    return tuple(changes)


def mean(values: Sequence[float]) -> float:
    """Of at least one value."""
    return sum(values) / len(values)


def edit_pairs(
    made: Sequence[Group],
    student: str,
    *,
    quiz: QuizKind = "quiz",
    edits: Edits = "all",
    round: int | None = None,
    format: str | None = None,
) -> list[Pair]:
    """Quizzes of the evaluations of rounds: of all edits or of those kept, of one round or format or of all."""
    found: list[Pair] = []
    for group in made:
        if round is not None and group.round != round:
            continue
        for candidate in group.candidates:
            if format is not None and candidate.format != format:
                continue
            if edits == "kept" and candidate.id not in group.chosen_ids:
                continue
            for item in candidate.evaluations:
                if item.phase == "round" and student in (EVERYONE, item.student):
                    found += _pair(group.task_id, item, quiz)
    return found


def commit_pairs(report: RunReport, student: str, *, quiz: QuizKind = "quiz") -> list[Pair]:
    """Quizzes of what was committed: as the student answered with the stored version.

    Retention as it was evaluated where no answers of the stored version were kept.
    """
    kept = [item for item in report.commits if item.committed and student in (EVERYONE, item.student)]
    if quiz == "quiz":
        return [Pair(item.task_id, item.quiz_before, item.quiz_after) for item in kept]
    by_id: Mapping[tuple[str, str], EvaluationRecord] = {
        (item.student, item.evaluation_id): item for each in report.candidates for item in each.evaluations
    }
    found: list[Pair] = []
    for commit in kept:
        record = by_id.get((commit.student, commit.evaluation_id))
        if record is not None:
            stored = commit.retention_after
            pairs = _pair(commit.task_id, record, "retention")
            found += [pair._replace(after=stored) for pair in pairs] if stored.scores else pairs
    return found


def _pair(task_id: str, item: EvaluationRecord, quiz: QuizKind) -> list[Pair]:
    if item.report is None:
        return []
    if quiz == "quiz":
        return [Pair(task_id, item.report.before, item.report.after)]
    if not item.report.retention_after.scores:
        return []
    return [Pair(task_id, item.report.retention_before, item.report.retention_after)]


def _rows(report: RunReport, made: Sequence[Group], student: str) -> Iterator[ScoreRow]:
    rounds = sorted({group.round for group in made})
    formats = sorted({candidate.format for group in made for candidate in group.candidates})
    for quiz in ("quiz", "retention"):
        for number in rounds:
            for edits in ("all", "kept"):
                pairs = edit_pairs(made, student, quiz=quiz, edits=edits, round=number)
                yield _row(f"Round {number}, {edits} edits", pairs, quiz, edits, round=number)
        if len(rounds) > 1:
            yield _row("All rounds, all edits", edit_pairs(made, student, quiz=quiz), quiz, "all")
        if len(formats) > 1:
            for name in formats:
                pairs = edit_pairs(made, student, quiz=quiz, format=name)
                yield _row(f"Format {name}, all edits", pairs, quiz, "all", format=name)
        yield _row("Committed", commit_pairs(report, student, quiz=quiz), quiz, "committed")


def _row(
    label: str,
    pairs: Sequence[Pair],
    quiz: QuizKind,
    edits: Edits,
    *,
    round: int | None = None,
    format: str | None = None,
) -> ScoreRow:
    return ScoreRow(label, len({pair.task_id for pair in pairs}), score_changes(pairs), quiz, edits, round, format)
