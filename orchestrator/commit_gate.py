"""Which edit a student keeps, if any: the best over all rounds, if its gain is worth it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.run_config import RunConfig
from tutelage.domain.evaluation import EvaluationReport, QuizResult

TRIES = 3
"""Trainings for one commit: weights may no longer be held, or the version may move meanwhile."""


@dataclass(frozen=True)
class Tried:
    """A scored evaluation of a candidate on one student."""

    candidate_id: str
    evaluation_id: str
    adapter_version: str
    """The version it was trained over."""
    report: EvaluationReport
    replica: str = ""
    """Address of the replica that has its weights."""


def gain(before: QuizResult, after: QuizResult, grader: str) -> float:
    """What the quiz's mean score by a grader rose by."""
    return after.scores[grader] - before.scores[grader]


def best(tried: Sequence[Tried], config: RunConfig) -> Tried | None:
    """The one with the greatest gain on the gate's grader; ties go to the one that forgot least, then the first."""
    grader = config.commit.grader
    scored = [item for item in tried if grader in item.report.before.scores and grader in item.report.after.scores]

    def rank(item: Tried) -> tuple[float, float]:
        return gain(item.report.before, item.report.after, grader), -_forgotten(item.report, config)

    return max(scored, key=rank, default=None)


def refusal(report: EvaluationReport, config: RunConfig) -> str:
    """Why an evaluation does not pass the gate; empty when it does."""
    gate = config.commit
    gained = gain(report.before, report.after, gate.grader)
    if gained <= gate.min_gain:
        return f"gain {gained:+.4f} on {gate.grader} is not above {gate.min_gain}"
    lost = _forgotten(report, config)
    if gate.max_retention_loss is not None and lost > gate.max_retention_loss:
        return f"{lost:.4f} forgotten on {config.reward.retention_grader} is above {gate.max_retention_loss}"
    kept = report.retention_after.scores.get(config.reward.retention_grader)
    if gate.min_retention is not None and kept is None:
        return f"the retention quiz has no score by {config.reward.retention_grader}, and {gate.min_retention} is asked"
    if gate.min_retention is not None and kept is not None and kept < gate.min_retention:
        return f"{kept:.4f} on {config.reward.retention_grader} of the retention quiz is below {gate.min_retention}"
    return ""


def refusal_as_stored(report: EvaluationReport, quiz: QuizResult, retention: QuizResult, config: RunConfig) -> str:
    """Why a stored version does not pass the gate, by what it answers itself; empty when it does.

    It is not quite what earned the report: joined with its parent, and perhaps recompressed.
    """
    after = quiz if quiz.answers else report.after
    kept = retention if retention.answers else report.retention_after
    why_not = refusal(replace(report, after=after, retention_after=kept), config)
    return f"as stored, {why_not}" if why_not else ""


def _forgotten(report: EvaluationReport, config: RunConfig) -> float:
    grader = config.reward.retention_grader
    before, after = report.retention_before.scores.get(grader), report.retention_after.scores.get(grader)
    return 0.0 if before is None or after is None else max(0.0, before - after)
