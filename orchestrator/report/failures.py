"""Everything of a run that did not work, and why, in one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.report.data import RunReport
from tutelage.domain.run import NO_UPDATE, RunEvent, RunState
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
    """A run that ended early, what was rejected or failed, updates and commits that did not happen, retries."""
    return (*_problems(report), *_interruptions(report.events))


def _problems(report: RunReport) -> Iterator[Problem]:
    summary = report.header.summary
    if summary.state in (RunState.FAILED, RunState.CANCELLED):
        yield Problem(
            f"run {summary.state.value}", summary.run_id, summary.message or "no reason given", "The run ended early."
        )
    for candidate in report.candidates:
        where = f"round {candidate.round}, {candidate.task_title}, candidate {candidate.index + 1}"
        if candidate.rejection is not None:
            earned = "" if candidate.reward is None else f" Earned {_earned(candidate.reward)}."
            yield Problem("edit rejected", where, describe_rejection(candidate.rejection), f"Not evaluated.{earned}")
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
                yield Problem("evaluation rejected", there, evaluation.reason, f"Earned {_earned(evaluation.reward)}.")
    for number, result in report.updates:
        if not result.updated and result.policy.algorithm != NO_UPDATE:
            yield Problem(
                "no update", f"round {number}", result.message or "no reason given", "The policy stayed as it was."
            )
    for commit in report.commits:
        if not commit.committed:
            where = f"student {commit.student}, {commit.task_id}"
            what = "not committed for a fault" if commit.fault else "not committed"
            yield Problem(what, where, commit.reason or "no reason given", "The student stayed as it was.")


def _earned(reward: float | None) -> str:
    return "no reward" if reward is None else f"reward {reward:.3g}"


def _interruptions(events: Sequence[RunEvent]) -> Iterator[Problem]:
    """What was overcome: attempts that failed and were made again, and restarts of the orchestrator."""
    attempts: Counter[tuple[str, str]] = Counter()
    waits: Counter[str] = Counter()
    resumed = 0
    for event in events:
        if event.kind == "evaluation_retry":
            attempts[f"student {event.detail.get('student', '?')}", str(event.detail.get("reason", ""))] += 1
        elif event.kind == "teacher_retry":
            attempts["teacher", str(event.detail.get("reason", ""))] += 1
        elif event.kind == "run_resumed":
            resumed += 1
        elif event.kind == "run_waits":
            waits[str(event.detail.get("message", ""))] += 1
        elif event.kind == "group_dropped":
            where = f"round {event.detail.get('round', '?')}, {event.detail.get('task', '?')}"
            yield Problem(
                "group dropped", where, "Too few of its candidates were scored.", "Nothing was learned from it."
            )
    for (where, reason), count in attempts.items():
        yield Problem(f"tried again, {count} ×", where, reason or "no reason given", "Waited and asked again.")
    for reason, count in waits.items():
        yield Problem(f"waited, {count} ×", "orchestrator", reason, "The run went on when it could.")
    if resumed:
        yield Problem(
            f"resumed, {resumed} ×",
            "orchestrator",
            "It was paused, stopped or killed.",
            "The run went on from its last row.",
        )
