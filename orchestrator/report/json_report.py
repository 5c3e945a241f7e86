"""The whole run report as one JSON document, with its statistics: times in ISO 8601, numbers not finite as null."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
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


def json_parts(report: RunReport) -> Iterator[str]:
    """JSON a part at a time: `format` to tell later forms apart, the fields of `RunReport`, the statistics.

    Each item of a list is one line.
    """
    answers = "all" if report.all_answers else "of the best and the worst edits"
    yield f'{{"format": "tutelage-run-report-1", "answers": {_text(answers)},\n"report": {{'
    for number, item in enumerate(dataclasses.fields(report)):
        value = getattr(report, item.name)
        yield f"{',' if number else ''}\n{_text(item.name)}: "
        if not isinstance(value, tuple):
            yield _text(plain(value))
            continue
        for index, each in enumerate(value):
            yield f"{',' if index else '['}\n{_text(plain(each))}"
        yield "\n]" if value else "[]"
    yield f'\n}},\n"statistics": {_text(plain(statistics(report)))}\n}}\n'


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def render_json(report: RunReport) -> str:
    """The whole of `json_parts`."""
    return "".join(json_parts(report))
