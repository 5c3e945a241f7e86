"""The whole run report as one JSON document, with its statistics: times in ISO 8601, numbers not finite as null."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import datetime
from enum import Enum

from orchestrator.report.costs import costs, totals
from orchestrator.report.data import RoundUpdate, RunReport
from orchestrator.report.failures import problems
from orchestrator.report.quiz_scores import student_scores
from orchestrator.report.rewards import groups, reward_by_round


def plain(value: object) -> object:
    """A value of the report as dicts, lists, texts and numbers; raises TypeError for what has no JSON form."""
    if isinstance(value, RoundUpdate):
        return {"round": value.round, "result": plain(value.result)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def statistics(report: RunReport) -> dict[str, object]:
    """What the report derives from its records: gains and rewards with 95 % intervals, costs, what failed."""
    made = groups(report)
    gains = [
        {
            "student": table.student or None,
            "quiz": row.quiz,
            "edits": row.edits,
            "round": row.round,
            "format": row.format,
            "grader": change.grader,
            "before": change.before,
            "after": change.after,
            "difference": change.difference,
        }
        for table in student_scores(report, made)
        for row in table.rows
        for change in row.changes
    ]
    spent = costs(report)
    return {
        "gains": gains,
        "rewards": reward_by_round(made),
        "costs": spent,
        "totals": totals(spent),
        "problems": problems(report),
    }


def render_json(report: RunReport) -> str:
    """Indented JSON: the fields of `RunReport`, the statistics, and `format` to tell later forms apart."""
    document = {
        "format": "tutelage-run-report-1",
        "report": plain(report),
        "statistics": plain(statistics(report)),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
