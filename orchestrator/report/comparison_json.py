"""A comparison of two runs as JSON: measures with intervals, settings that differ, totals."""

from __future__ import annotations

import json

from orchestrator.report.comparison import Comparison
from orchestrator.report.json_report import plain


def render_comparison_json(comparison: Comparison) -> str:
    """Indented JSON; `student` is null for all students together, differences are `other` less `first`."""
    document = {
        "format": "tutelage-run-comparison-1",
        "first": plain(comparison.first.header.summary),
        "other": plain(comparison.other.header.summary),
        "shared_documents": list(comparison.shared),
        "measures": [
            {"student": item.student or None}
            | {
                name: plain(getattr(item, name))
                for name in ("label", "quiz", "edits", "grader", "first", "other", "difference", "paired", "shared")
            }
            for item in comparison.measures
        ],
        "settings": plain(comparison.settings),
        "totals": plain(comparison.totals),
    }
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
