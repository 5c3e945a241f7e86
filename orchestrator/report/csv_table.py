"""The run's evaluations as one CSV table (RFC 4180): a row each, and a row for every edit that never got one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from orchestrator.report.data import CandidateRecord, EvaluationRecord, RunReport
from orchestrator.report.json_report import plain
from orchestrator.report.quiz_scores import ORDER

_FIXED = (
    "run_id", "round", "task_id", "task_title", "candidate_id", "candidate_index", "format", "policy_version",
    "candidate_reward", "chosen", "rejection", "candidate_seed", "completion_tokens", "student", "repeat", "phase",
    "evaluation_id", "evaluation_seed", "state", "reason", "attempts", "seconds", "reward",
)  # fmt: skip
_COST = ("steps", "tokens", "supervised_tokens", "first_loss", "last_loss", "train_seconds", "quiz_seconds")
_SETTINGS = ("rank", "alpha", "learning_rate", "epochs", "batch_size")
_QUIZZES = ("before", "after", "retention_before", "retention_after")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def render_csv(report: RunReport) -> str:
    """The table with a header; empty cells are unknown, line ends are CRLF.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay as they are.
    """
    names = _graders(report)
    parts = sorted({name for _, item in _evaluations(report) if item is not None for name in item.parts})
    columns = [
        *_FIXED,
        *(f"reward_{name}" for name in parts),
        *(f"{quiz}_{name}" for quiz in _QUIZZES for name in names),
        *(f"gain_{name}" for name in names),
        "answer_overlap",
        *_COST,
        *_SETTINGS,
        "finished_at",
    ]
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns, lineterminator="\r\n")
    table.writeheader()
    for candidate, item in _evaluations(report):
        row = _candidate(report, candidate)
        if item is not None:
            row |= _evaluation(item)
        table.writerow({name: _cell(value) for name, value in row.items()})
    return text.getvalue()


def _evaluations(report: RunReport) -> Iterator[tuple[CandidateRecord, EvaluationRecord | None]]:
    for candidate in report.candidates:
        for item in candidate.evaluations:
            yield candidate, item
        if not candidate.evaluations:
            yield candidate, None


def _graders(report: RunReport) -> list[str]:
    found = {
        name
        for _, item in _evaluations(report)
        if item is not None and item.report is not None
        for quiz in _QUIZZES
        for name in getattr(item.report, quiz).scores
    }
    return [name for name in ORDER if name in found] + sorted(found - set(ORDER))


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    value = plain(value)
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value


def _candidate(report: RunReport, candidate: CandidateRecord) -> dict[str, object]:
    return {
        "run_id": report.header.summary.run_id,
        "round": candidate.round,
        "task_id": candidate.task_id,
        "task_title": candidate.task_title,
        "candidate_id": candidate.id,
        "candidate_index": candidate.index,
        "format": candidate.format,
        "policy_version": candidate.policy_version,
        "candidate_reward": candidate.reward,
        "chosen": candidate.chosen,
        "rejection": candidate.rejection.reason.value if candidate.rejection else None,
        "candidate_seed": candidate.seed,
        "completion_tokens": candidate.completion_tokens,
    }


def _evaluation(item: EvaluationRecord) -> dict[str, object]:
    row: dict[str, object] = {
        "student": item.student,
        "repeat": item.repeat,
        "phase": item.phase,
        "evaluation_id": item.evaluation_id,
        "evaluation_seed": item.seed,
        "state": item.state,
        "reason": item.reason,
        "attempts": item.attempts,
        "seconds": item.seconds,
        "reward": item.reward,
    }
    row |= {f"reward_{name}": value for name, value in item.parts.items()}
    if item.report is None:
        return row
    for quiz in _QUIZZES:
        row |= {f"{quiz}_{name}": value for name, value in getattr(item.report, quiz).scores.items()}
    before, after = item.report.before.scores, item.report.after.scores
    row |= {f"gain_{name}": after[name] - before[name] for name in after if name in before}
    row |= {name: getattr(item.report.cost, name) for name in _COST}
    row |= {name: getattr(item.report.effective_settings, name) for name in _SETTINGS}
    return row | {"answer_overlap": item.report.answer_overlap, "finished_at": item.report.finished_at}
