"""The example script adapts the documents and students it is given, with a real orchestrator."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tutelage.domain.policy import Format, Parser
from tutelage.wire.description import teacher_description_from_wire, teacher_description_to_wire

SCRIPT = Path(__file__).parents[2] / "examples" / "adapt_my_documents.py"
DOCUMENT = {"id": "d1", "title": "One", "text": "Text.", "questions": [{"question": "?", "answer": "!"}]}


@pytest.fixture
def self_qa_writer(world: Any) -> None:
    described = world.teacher.Describe

    async def describe(request: Any, context: Any) -> Any:
        known = teacher_description_from_wire(await described(request, context))
        formats = (*known.formats, Format("self-qa", "Ask about {text}", Parser.LINES))
        return teacher_description_to_wire(replace(known, formats=formats))

    world.teacher.Describe = describe


@pytest.mark.parametrize("students", [("a",), ("a", "b")])
def test_the_script_runs_with_the_students_that_it_is_told(
    self_qa_writer: None, served: Any, tmp_path: Path, students: tuple[str, ...]
) -> None:
    (tmp_path / "mine.jsonl").write_text(json.dumps(DOCUMENT) + "\n", encoding="utf-8")
    with served() as address:
        arguments = [sys.executable, str(SCRIPT), address, "mine.jsonl", *students]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    assert f"{2 * len(students)}/{2 * len(students)} evaluations" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last.startswith("done: mean reward ")
    assert (tmp_path / last.rpartition(" ")[2]).read_text().startswith("<!")
