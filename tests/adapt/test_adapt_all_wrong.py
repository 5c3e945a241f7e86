"""A run that is wrong in many ways tells all of them at once, and nothing is begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tutelage.cli.main import app
from tutelage.cli.run_file import WrongRun, prepare_run
from tutelage.domain.errors import InvalidInput

RUN = """
documents: nowhere.jsonl
retention_quiz: gone.jsonl
students: [a, zoe]
format: haiku
candidates: 0
colour: red
reward: {grader_weights: {contains: 1.0}}
"""


def test_students_formats_files_and_fields_are_told_together(served: Any, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    with served() as address:
        at = ["--orchestrator", address]
        done = CliRunner().invoke(app, ["run", "start", str(path), "--run-id", "r", *at])
        assert isinstance(done.exception, InvalidInput)
        fields = [each.field for each in done.exception.violations]
        for part in ("nowhere.jsonl", "gone.jsonl"):
            assert any(part in f"{each.field} {each.value}" for each in done.exception.violations), (part, fields)
        assert f"{path}: candidates" in fields
        assert f"{path}: colour" in fields
        assert "config.students[1]" in fields
        assert "config.format" in fields
        assert len(fields) == len(set(fields)) == 6
        listed = CliRunner().invoke(app, ["run", "list", "--json", *at])
        assert listed.stdout.strip() == "[]"


def test_what_is_wrong_here_is_told_without_an_orchestrator(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN, encoding="utf-8")
    with pytest.raises(WrongRun) as caught:
        prepare_run(path)
    assert len(caught.value.violations) == 4
    done = CliRunner().invoke(app, ["run", "start", str(path), "--orchestrator", "127.0.0.1:1"])
    assert isinstance(done.exception, InvalidInput)
    assert len(done.exception.violations) == 4
