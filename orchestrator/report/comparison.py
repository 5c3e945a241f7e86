"""Two runs side by side: each measure in both, and the difference with its 95 % interval. Pure.

Documents that both runs had, with the same text and quiz, are paired: what makes one document harder than another then
cancels out. Where they share fewer than two, each run's documents are resampled by themselves. What was forgotten is
paired only where both asked the same retention quiz.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from orchestrator.report.bootstrap import Interval, mean_interval, paired_interval, unpaired_interval
from orchestrator.report.costs import costs, totals
from orchestrator.report.data import RunReport
from orchestrator.report.quiz_scores import (
    EVERYONE,
    ORDER,
    Edits,
    Pair,
    QuizKind,
    commit_pairs,
    document_scores,
    edit_pairs,
)
from orchestrator.report.rewards import Group, groups
from tutelage.domain.canonical import content_hash

REWARD = "reward"
"""The measure that is no grader's: the mean reward of a document's scored candidates."""


@dataclass(frozen=True)
class Compared:
    """One measure of both runs; differences are the other run less the first."""

    student: str
    """`EVERYONE` for all together."""
    label: str
    quiz: QuizKind
    edits: Edits
    grader: str
    """Or `REWARD`."""
    first: Interval | None
    other: Interval | None
    difference: Interval | None
    paired: bool
    shared: int
    """Documents that both runs measured."""


@dataclass(frozen=True)
class Setting:
    name: str
    first: str
    other: str


@dataclass(frozen=True)
class Comparison:
    first: RunReport
    other: RunReport
    shared: tuple[str, ...]
    """Ids of the documents that both runs had, with the same text and quiz."""
    measures: tuple[Compared, ...]
    settings: tuple[Setting, ...]
    """Settings and versions in which the two differ."""
    totals: tuple[Setting, ...]

    @property
    def rewarded_alike(self) -> bool:
        """Whether rewards of the two are of the same kind."""
        return not any(item.name.startswith("reward.") for item in self.settings)

    @property
    def asked_to_remember_alike(self) -> bool:
        """Whether both had the same retention quiz."""
        return _asked_to_remember_alike(self.first, self.other)


def compare(first: RunReport, other: RunReport) -> Comparison:
    """The comparison of `other` with `first`."""
    theirs = {item.task.id: item for item in other.header.tasks}
    shared = tuple(item.task.id for item in first.header.tasks if theirs.get(item.task.id) == item)
    return Comparison(
        first, other, shared, tuple(_measures(first, other, frozenset(shared))),
        tuple(_different(_settings(first), _settings(other))), _totals(first, other),
    )  # fmt: skip


def _asked_to_remember_alike(first: RunReport, other: RunReport) -> bool:
    return first.header.retention_quiz == other.header.retention_quiz


def _measures(first: RunReport, other: RunReport, shared: frozenset[str]) -> Iterator[Compared]:
    sides = (first, other)
    made = (groups(first), groups(other))
    rounds = [sorted({group.round for group in each}) for each in made]
    if not all(rounds):
        return
    # (label, edits, round of the first run, round of the other)
    moments: list[tuple[str, Edits, int, int]] = []
    if rounds[0][-1] > rounds[0][0] or rounds[1][-1] > rounds[1][0]:
        moments.append(("First round, all edits", "all", rounds[0][0], rounds[1][0]))
    moments += [
        ("Last round, all edits", "all", rounds[0][-1], rounds[1][-1]),
        ("Last round, kept edits", "kept", rounds[0][-1], rounds[1][-1]),
    ]
    for label, edits, *numbers in moments:
        if edits == "all":
            rewards = [_rewards(each, number) for each, number in zip(made, numbers, strict=True)]
            yield from _compared(EVERYONE, label, "quiz", edits, REWARD, rewards[0], rewards[1], shared)
    remembered = shared if _asked_to_remember_alike(first, other) else frozenset[str]()
    students = sorted({name for report in sides for name in _students(report)})
    both = [name for name in students if all(name in _students(report) for report in sides)]
    for student in ([EVERYONE] if len(both) > 1 and len(both) == len(students) else []) + students:
        kinds: tuple[QuizKind, ...] = ("quiz", "retention")
        for quiz in kinds:
            alike = shared if quiz == "quiz" else remembered
            for label, edits, *numbers in moments:
                pairs = [
                    edit_pairs(each, student, quiz=quiz, edits=edits, round=number)
                    for each, number in zip(made, numbers, strict=True)
                ]
                yield from _graded(student, label, quiz, edits, pairs, alike)
            committed = [commit_pairs(report, student, quiz=quiz) for report in sides]
            yield from _graded(student, "Committed", quiz, "committed", committed, alike)


def _graded(
    student: str, label: str, quiz: QuizKind, edits: Edits, pairs: Sequence[Sequence[Pair]], shared: frozenset[str]
) -> Iterator[Compared]:
    names = {name for side in pairs for pair in side for name in pair.after.scores}
    for grader in [name for name in ORDER if name in names] + sorted(names - set(ORDER)):
        gains = [
            {task_id: after - before for task_id, (before, after) in document_scores(side, grader).items()}
            for side in pairs
        ]
        yield from _compared(student, label, quiz, edits, grader, gains[0], gains[1], shared)


def _compared(
    student: str,
    label: str,
    quiz: QuizKind,
    edits: Edits,
    grader: str,
    first: Mapping[str, float],
    other: Mapping[str, float],
    shared: frozenset[str],
) -> Iterator[Compared]:
    if not first and not other:
        return
    common = [task_id for task_id in first if task_id in other and task_id in shared]
    paired = len(common) >= 2 or (len(common) == len(first) == len(other) == 1)
    if paired:
        difference = paired_interval([first[each] for each in common], [other[each] for each in common])
    else:
        difference = unpaired_interval(list(first.values()), list(other.values()))
    yield Compared(
        student, label, quiz, edits, grader, mean_interval(list(first.values())), mean_interval(list(other.values())),
        difference, paired, len(common),
    )  # fmt: skip


def _rewards(made: Sequence[Group], number: int) -> dict[str, float]:
    return {group.task_id: group.mean for group in made if group.round == number and group.mean is not None}


def _students(report: RunReport) -> set[str]:
    return {item.student for candidate in report.candidates for item in candidate.evaluations}


def _settings(report: RunReport) -> dict[str, str]:
    header = report.header
    found: dict[str, str] = {}
    _flatten("", yaml.safe_load(header.resolved_yaml or header.config_yaml), found)
    # The run's YAML names a file at most, which may since hold other questions.
    quiz = header.retention_quiz
    asked = f"{len(quiz.questions)} questions, {content_hash(quiz)[:12]}" if quiz.questions else "none"
    versions = {f"version of {name}": version for name, version in header.versions.items()}
    return found | {"questions of retention_quiz": asked} | versions


def _flatten(prefix: str, value: object, into: dict[str, str]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(f"{prefix}.{key}" if prefix else str(key), inner, into)
    elif prefix:
        into[prefix] = ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _different(first: Mapping[str, str], other: Mapping[str, str]) -> Iterator[Setting]:
    for name in dict.fromkeys((*first, *other)):
        if first.get(name) != other.get(name):
            yield Setting(name, first.get(name, "not set"), other.get(name, "not set"))


def _totals(first: RunReport, other: RunReport) -> tuple[Setting, ...]:
    spent = [totals(costs(report)) for report in (first, other)]
    names = {
        "evaluations": "evaluations with a report",
        "faulty": "evaluations rejected or failed",
        "attempts": "attempts",
        "tokens": "tokens trained on",
        "supervised_tokens": "of these with loss",
        "steps": "optimiser steps",
        "work_seconds": "seconds of work in the students",
    }
    return tuple(Setting(text, f"{spent[0][name]:,.0f}", f"{spent[1][name]:,.0f}") for name, text in names.items())
