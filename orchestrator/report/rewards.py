"""Rewards as the report shows them: by group (one document in one round), by round and by document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.report.bootstrap import Interval, mean_interval
from orchestrator.report.data import CandidateRecord, RunReport


@dataclass(frozen=True)
class Group:
    """The candidates of one document in one round."""

    round: int
    task_id: str
    task_title: str
    candidates: tuple[CandidateRecord, ...]
    chosen_ids: frozenset[str]

    @property
    def scored(self) -> tuple[float, ...]:
        return tuple(candidate.reward for candidate in self.candidates if candidate.reward is not None)

    @property
    def mean(self) -> float | None:
        return sum(self.scored) / len(self.scored) if self.scored else None

    @property
    def best(self) -> float | None:
        return max(self.scored, default=None)


@dataclass(frozen=True)
class RoundReward:
    round: int
    mean: Interval | None
    """Of the documents' mean rewards."""
    best: Interval | None
    """Of the documents' best rewards; optimistic, since the best is picked by the very score."""
    scored: int
    unscored: int


@dataclass(frozen=True)
class DocumentGain:
    task_id: str
    title: str
    by_round: tuple[tuple[int, tuple[float, ...]], ...]
    """Rewards of the scored candidates, by round."""


def chosen_ids(candidates: Sequence[CandidateRecord]) -> frozenset[str]:
    """Those that the round's update made more probable, as far as its teacher has told."""
    return frozenset(candidate.id for candidate in candidates if candidate.chosen)


def groups(report: RunReport) -> tuple[Group, ...]:
    """Groups in the order of rounds, then of the documents' first appearance."""
    found: dict[tuple[int, str], list[CandidateRecord]] = {}
    for candidate in report.candidates:
        found.setdefault((candidate.round, candidate.task_id), []).append(candidate)
    made = [
        Group(
            round_number,
            task_id,
            members[0].task_title,
            tuple(sorted(members, key=lambda member: member.index)),
            chosen_ids(members),
        )
        for (round_number, task_id), members in found.items()
    ]
    return tuple(sorted(made, key=lambda group: group.round))


def reward_by_round(made: Sequence[Group]) -> tuple[RoundReward, ...]:
    """Mean and best reward of each round with 95 % bootstrap intervals over documents."""
    rounds = []
    for number in sorted({group.round for group in made}):
        members = [group for group in made if group.round == number]
        means = [group.mean for group in members if group.mean is not None]
        bests = [group.best for group in members if group.best is not None]
        scored = sum(len(group.scored) for group in members)
        total = sum(len(group.candidates) for group in members)
        rounds.append(RoundReward(number, mean_interval(means), mean_interval(bests), scored, total - scored))
    return tuple(rounds)


def gain_by_document(made: Sequence[Group]) -> tuple[DocumentGain, ...]:
    """Each document's rewards by round; documents with the greatest mean of their last round come first."""
    gains = []
    for task_id in dict.fromkeys(group.task_id for group in made):
        members = [group for group in made if group.task_id == task_id]
        by_round = tuple((group.round, group.scored) for group in members)
        gains.append(DocumentGain(task_id, members[0].task_title, by_round))
    return tuple(sorted(gains, key=_last_mean, reverse=True))


def _last_mean(gain: DocumentGain) -> float:
    for _, values in reversed(gain.by_round):
        if values:
            return sum(values) / len(values)
    return float("-inf")


def extremes(report: RunReport, most: int = 3) -> tuple[tuple[CandidateRecord, ...], tuple[CandidateRecord, ...]]:
    """The scored candidates with the greatest rewards and those with the least, the most extreme first.

    At most `most` of each and none in both; equal edits of a group count once.
    """
    distinct: dict[tuple[int, str, str, float], CandidateRecord] = {}
    for candidate in report.candidates:
        if candidate.reward is not None:
            distinct.setdefault((candidate.round, candidate.task_id, candidate.text, candidate.reward), candidate)
    scored = sorted(distinct.values(), key=lambda candidate: -(candidate.reward or 0.0))
    count = min(most, (len(scored) + 1) // 2)
    return tuple(scored[:count]), tuple(reversed(scored[max(count, len(scored) - count) :]))
