"""What the README tells a new user holds: its settings load, its commands are there, its links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.config import OrchestratorSettings
from student.config import StudentSettings
from teacher.config import TeacherSettings
from tutelage.cli.run_file import prepare_run
from tutelage.settings import parse_settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
ROOMS: dict[str, type[Any]] = {"ada": StudentSettings, "teacher": TeacherSettings, "orchestrator": OrchestratorSettings}


def blocks(kind: str) -> list[str]:
    """The fenced blocks of a kind, without the indentation of their list item."""
    # Odd pieces are inside fences; the first line of each is its kind.
    inside = [piece.partition("\n") for piece in TEXT.split("```")[1::2]]
    return [re.sub(r"(?m)^   ", "", text) for found, _, text in inside if found == kind]


@pytest.mark.parametrize("room", ROOMS)
def test_settings_of_each_service_load(room: str) -> None:
    (text,) = [block for block in blocks("yaml") if block.startswith(f"# {room}.yaml")]
    settings = parse_settings(text, ROOMS[room])
    assert settings.server.port in range(7070, 7074)


def test_the_services_name_each_other_by_their_ports() -> None:
    by_name = {block.split(".yaml")[0].removeprefix("# "): yaml.safe_load(block) for block in blocks("yaml")[1:]}
    orchestrator = by_name["orchestrator"]
    assert orchestrator["teacher"]["address"] == f"127.0.0.1:{by_name['teacher']['server']['port']}"
    assert orchestrator["students"]["ada"]["address"] == f"127.0.0.1:{by_name['ada']['server']['port']}"
    assert orchestrator["students"].keys() == {"ada", "ben"}


def test_the_run_and_its_document_are_read(tmp_path: Path) -> None:
    (document,) = blocks("json")
    (tmp_path / "documents.jsonl").write_text(document.strip() + "\n")
    (tmp_path / "run.yaml").write_text(blocks("yaml")[0])
    prepared = prepare_run(tmp_path / "run.yaml")
    assert [item.task.id for item in prepared.tasks] == ["d1"]
    assert prepared.config.students == ("ada", "ben")


def test_the_examples_name_the_readmes_students() -> None:
    (text,) = [block for block in blocks("yaml") if block.startswith("# orchestrator.yaml")]
    known = yaml.safe_load(text)["students"].keys()
    examples = [*(ROOT / "examples" / "runs").glob("*.yaml"), ROOT / "examples" / "adapt.yaml"]
    named = [yaml.safe_load(example.read_text(encoding="utf-8"))["students"] for example in examples]
    inbox = yaml.safe_load((ROOT / "examples" / "orchestrator-with-inbox.yaml").read_text(encoding="utf-8"))
    deployed = yaml.safe_load((ROOT / "deploy" / "config" / "orchestrator.yaml").read_text(encoding="utf-8"))
    assert len(named) >= 3
    assert all(set(students) <= known for students in named), named
    assert inbox["students"].keys() == set(inbox["inboxes"]["news"]["students"]) == deployed["students"].keys() == known


def test_every_command_and_option_is_there() -> None:
    lines = [line.split("#")[0].split("&")[0].split() for block in blocks("") for line in block.splitlines()]
    commands = [line[1:] for line in lines if line[:1] == ["tutelage"]]
    assert len(commands) >= 8
    for words in commands:
        named = [word for word in words if re.fullmatch(r"[a-z]+", word)]
        shown = subprocess.run(
            [sys.executable, "-m", "tutelage.cli.main", *named[:2], "--help"] if named[0] != "ask"
            else [sys.executable, "-m", "tutelage.cli.main", "ask", "--help"],
            capture_output=True, text=True, check=False, env={"COLUMNS": "200", "PATH": ""},
        )  # fmt: skip
        assert shown.returncode == 0, (words, shown.stderr)
        for option in (word for word in words if word.startswith("-")):
            assert option in shown.stdout, (words, option)
    for target in re.findall(r"^make ([a-z]+)", TEXT, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target


def test_links_lead_to_files() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) >= 6
    assert [link for link in links if not (ROOT / link).exists()] == []
