"""What `tutelage policies diff` lets two versions write about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tutelage.cli.policies import chosen_format, document_task
from tutelage.domain.description import TeacherDescription
from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import Format, Parser
from tutelage.domain.task import DocumentTask, Task


def test_a_document_needs_no_questions_to_be_written_about(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    lines = [{"id": name, "title": name, "text": f"{name} is a village."} for name in ("orrin", "velm")]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert document_task(path, None).id == "orrin"
    assert document_task(path, "velm").id == "velm"
    with pytest.raises(InvalidInput, match="orrin, velm"):
        document_task(path, "other")


def test_a_file_that_is_no_file_of_tasks_is_a_text(tmp_path: Path) -> None:
    """YAML, too: no file of tasks is read from it."""
    path = tmp_path / "notes.yaml"
    path.write_text("village: Orrin\nmayor: Bel Tarn\n")
    assert document_task(path, None) == Task("notes", DocumentTask("notes", path.read_text()))


def test_the_format_of_a_run_is_written_in_as_it_stands_there(tmp_path: Path) -> None:
    """One that lies in the run itself, directives and all, is the one that its policies have learned."""
    known = (Format("plain", "Write.", Parser.LINES), Format("other", "Write more.", Parser.WHOLE))
    teacher = TeacherDescription("tiny", "r", "none", "cpu", "p", "p", "t", 512, known, (), "1")
    own = {"name": "own", "prompt": "Write about {text}", "parser": "question_answer", "directives": True}
    run = tmp_path / "run.yaml"

    def of(format: object) -> Format:
        run.write_text(json.dumps({"students": ["a"], "format": format}), encoding="utf-8")
        return chosen_format("", run, teacher)

    assert of(own) == Format("own", "Write about {text}", Parser.QUESTION_ANSWER, directives=True)
    assert of("other") == known[1]
    assert chosen_format("", None, teacher) == known[0]
    assert chosen_format("other", None, teacher) == known[1]
    directed = Format("other+directives", "Write more.", Parser.WHOLE, directives=True)
    assert chosen_format("other+directives", None, teacher) == of("other+directives") == directed
    for name, path, message in (
        ("sonnet", None, r"plain, other, with \+directives"),
        ("sonnet+directives", None, "plain, other"),
        ("plain", run, "whose format is taken"),
    ):
        with pytest.raises(InvalidInput, match=message):
            chosen_format(name, path, teacher)
    with pytest.raises(InvalidInput, match=r"plain, other\), with \+directives"):
        of("sonnet")
    with pytest.raises(InvalidInput, match="which a run fills in"):
        of({**own, "prompt": "Write about {text} for {student}"})
