"""What `tutelage policies diff` lets two versions write about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.cli.policies import document_task
from tutelage.domain.errors import InvalidInput


def test_a_document_needs_no_questions_to_be_written_about(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    lines = [{"id": name, "title": name, "text": f"{name} is a village."} for name in ("orrin", "velm")]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert document_task(path, None).id == "orrin"
    assert document_task(path, "velm").id == "velm"
    with pytest.raises(InvalidInput, match="orrin, velm"):
        document_task(path, "other")
