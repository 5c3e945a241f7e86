"""Everything of a run that did not work, and why, in one list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.report.data import RunReport
from tutelage.domain.run import RunState
from tutelage.domain.self_edit import Rejection


@dataclass(frozen=True)
class Problem:
    kind: str
    where: str
    reason: str
    consequence: str


def describe_rejection(rejection: Rejection) -> str:
    """The reason in words, with field, value and what is allowed where they are known."""
    parts = [rejection.reason.value.replace("_", " ")]
    if rejection.field:
        allowed = f", allowed: {rejection.allowed}" if rejection.allowed else ""
        parts.append(f"{rejection.field} = {rejection.value}{allowed}")
    if rejection.message:
        parts.append(rejection.message)
    return ": ".join(parts)


def problems(report: RunReport) -> tuple[Problem, ...]:
    """Rejected edits, rejected and failed evaluations, updates and commits that did not happen, a failed run."""
    return tuple(_problems(report))


def _problems(report: RunReport) -> Iterator[Problem]:
    summary = report.header.summary
    if summary.state in (RunState.FAILED, RunState.CANCELLED):
        yield Problem(
            f"run {summary.state.value}", summary.run_id, summary.message or "no reason given", "The run ended early."
        )
    for candidate in report.candidates:
        where = f"round {candidate.round}, {candidate.task_title}, candidate {candidate.index + 1}"
        if candidate.rejection is not None:
            yield Problem("edit rejected", where, describe_rejection(candidate.rejection), "Not evaluated.")
        for evaluation in candidate.evaluations:
            if evaluation.state == "report":
                continue
            there = f"{where}, student {evaluation.student}, repeat {evaluation.repeat + 1}"
            tries = f" after {evaluation.attempts} attempts" if evaluation.attempts > 1 else ""
            if evaluation.state == "failed":
                yield Problem(
                    "evaluation failed", there, evaluation.reason + tries, "No reward: a fault is not a score."
                )
            else:
                earned = "no reward" if evaluation.reward is None else f"reward {evaluation.reward:.3g}"
                yield Problem("evaluation rejected", there, evaluation.reason, f"Earned {earned}.")
    for number, result in report.updates:
        if not result.updated:
            yield Problem(
                "no update", f"round {number}", result.message or "no reason given", "The policy stayed as it was."
            )
    for commit in report.commits:
        if not commit.committed:
            where = f"student {commit.student}, {commit.task_id}"
            yield Problem("not committed", where, commit.reason or "no reason given", "The student stayed as it was.")
