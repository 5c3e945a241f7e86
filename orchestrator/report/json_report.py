"""The whole run report as one JSON document: times in ISO 8601, numbers that are not finite as null."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import datetime
from enum import Enum

from orchestrator.report.data import RoundUpdate, RunReport


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


def render_json(report: RunReport) -> str:
    """Indented JSON with the fields of `RunReport`, and `format` to tell later forms apart."""
    document = {"format": "tutelage-run-report-1", "report": plain(report)}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
