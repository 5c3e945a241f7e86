"""Wrong input is told in one message with every field, and with exit code 2; a silent service with exit code 1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

_DOCUMENT = {
    "id": "d1",
    "title": "Orrin",
    "text": "Orrin is a village of mills. Its mayor is Bel Tarn.",
    "questions": [{"question": "Who is the mayor of Orrin?", "answer": "Bel Tarn"}],
}


def tutelage(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tutelage.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr
    return done


def write_run(folder: Path, **changes: object) -> Path:
    documents = folder / "documents.jsonl"
    documents.write_text("".join(json.dumps({**_DOCUMENT, "id": f"d{n}"}) + "\n" for n in (1, 2, 3)))
    settings = {"name": "try", "documents": "documents.jsonl", "students": ["ada", "ben"], "candidates": 3, "rounds": 2}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**settings, **changes}))
    return path


@pytest.mark.parametrize("room", ["student", "teacher", "orchestrator"])
def test_unknown_configuration_key_is_named_with_those_allowed(tmp_path: Path, room: str) -> None:
    config = tmp_path / "service.yaml"
    config.write_text("server:\n  prot: 7000\nno_such_key: 1\n")
    done = tutelage(room, "serve", "--config", str(config))
    assert done.returncode == 2
    assert "server.prot" in done.stderr
    assert "port" in done.stderr
    assert "no_such_key" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("run", "list", "--orchestrator", ""),
        ("policies", "list", "--teacher", " "),
        ("run", "list", "--orchestrator", "localhost"),
        ("adapters", "list", "--orchestrator", "http://127.0.0.1:7070"),
    ],
)
def test_an_address_without_host_and_port_is_wrong_input(command: tuple[str, ...]) -> None:
    done = tutelage(*command)
    assert done.returncode == 2
    assert "address: " in done.stderr
    assert "host:port" in done.stderr
    assert "pydantic" not in done.stderr


def test_a_student_without_a_name_is_wrong_input(tmp_path: Path) -> None:
    done = tutelage("run", "start", str(write_run(tmp_path, students=["ada", ""])), "--dry-run")
    assert done.returncode == 2
    assert "students[1]" in done.stderr


def test_changes_of_a_clone_that_are_no_text_are_wrong_input(tmp_path: Path) -> None:
    changes = tmp_path / "changes.yaml"
    changes.write_bytes(b"\xff")
    done = tutelage("run", "clone", "one", "two", "--changes", str(changes))
    assert done.returncode == 2
    assert f"config: '{changes}' is not allowed; allowed: a readable YAML file (it is not UTF-8)" in done.stderr


def test_configuration_file_that_is_not_there(tmp_path: Path) -> None:
    done = tutelage("orchestrator", "serve", "--config", str(tmp_path / "absent.yaml"))
    assert done.returncode == 2
    assert "absent.yaml" in done.stderr


def test_print_config_shows_defaults(tmp_path: Path) -> None:
    config = tmp_path / "orchestrator.yaml"
    config.write_text("teacher: {address: '127.0.0.1:1'}\nstudents: {ada: {address: '127.0.0.1:2'}}\n")
    done = tutelage("orchestrator", "serve", "--config", str(config), "--print-config")
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert resolved["students"]["ada"]["address"] == "127.0.0.1:2"
    assert resolved["server"]["host"] == "127.0.0.1"


def test_every_wrong_field_of_a_run_is_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path, candidates=0, rounds="many", colour="red", inner_loop={"rank": -1})
    done = tutelage("run", "start", str(run), "--dry-run")
    assert done.returncode == 2
    for field in ("candidates", "rounds", "colour", "inner_loop.rank"):
        assert field in done.stderr
    assert done.stdout == ""


def test_malformed_document_is_named_by_file_and_line(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with (tmp_path / "documents.jsonl").open("a") as file:
        file.write('{"id": "d9", "title": "x"}\n')
    done = tutelage("run", "start", str(run), "--dry-run")
    assert done.returncode == 2
    assert "documents.jsonl:4" in done.stderr


def test_dry_run_counts_and_resolves(tmp_path: Path) -> None:
    done = tutelage("run", "start", str(write_run(tmp_path, limit=2)), "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["tasks"] == 2
    assert shown["evaluations"] == 2 * 3 * 2 * 2
    assert shown["config"]["inner_loop"]["rank"] == 32
    plain = tutelage("run", "start", str(write_run(tmp_path, limit=2)), "--dry-run")
    assert yaml.safe_load(plain.stdout)["candidates"] == 3


def test_nothing_that_names_a_file_is_sent(tmp_path: Path) -> None:
    from tutelage.cli.run_file import prepare_run

    prepared = prepare_run(write_run(tmp_path, limit=1))
    sent = yaml.safe_load(prepared.config_yaml)
    assert sent == {"name": "try", "students": ["ada", "ben"], "candidates": 3, "rounds": 2}
    assert len(prepared.tasks) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "list"],
        ["run", "show", "x"],
        ["adapters", "list", "--json"],
        ["ask", "ada", "Who?"],
        ["run", "watch", "x"],
    ],
)
def test_unreachable_orchestrator_is_one_line_and_exit_code_1(arguments: list[str]) -> None:
    done = tutelage(*arguments, "--orchestrator", "127.0.0.1:9")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "127.0.0.1:9: is not reachable (Connection refused)" in done.stderr


def test_a_folder_that_is_no_demos_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    done = tutelage("demo", "--dir", str(tmp_path))
    assert done.returncode == 2
    assert "--dir" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "precious"
