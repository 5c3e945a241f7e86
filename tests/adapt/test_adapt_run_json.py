"""`tutelage run` with `--json`: standard output is one JSON document, however long the run is followed before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tutelage.cli.main import app

RUN = """
documents: documents.jsonl
students: [a, b]
candidates: 2
reward: {grader_weights: {contains: 1.0}}
"""
DOCUMENT = {"id": "d1", "title": "One", "text": "Text.", "questions": [{"question": "?", "answer": "!"}]}


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["run", *arguments])


def run_file(folder: Path) -> str:
    (folder / "documents.jsonl").write_text(json.dumps(DOCUMENT) + "\n", encoding="utf-8")
    (folder / "run.yaml").write_text(RUN, encoding="utf-8")
    return str(folder / "run.yaml")


def test_a_run_that_is_followed_prints_json_alone_with_its_end(served: Any, tmp_path: Path) -> None:
    with served() as address:
        at = ("--orchestrator", address)
        started = call("start", run_file(tmp_path), "--run-id", "r", "--json", "--watch", *at)
        assert started.exit_code == 0, started.output
        shown = json.loads(started.stdout)
        assert shown["created"] is True
        assert (shown["run"]["run_id"], shown["run"]["state"]) == ("r", "done")
        assert "evaluation_done" in started.stderr
        watched = call("watch", "r", "--json", *at)
        assert json.loads(watched.stdout)["state"] == "done"
        assert "evaluation_done" in watched.stderr
        for_people = call("watch", "r", *at)
        assert "evaluation_done" in for_people.stdout
        again = json.loads(call("start", run_file(tmp_path), "--run-id", "r", "--json", *at).stdout)
        assert again["created"] is False


def test_a_run_that_did_not_end_well_prints_json_and_fails(served: Any, world: Any, tmp_path: Path) -> None:
    world.a.delay_s = 30.0
    with served() as address:
        at = ("--orchestrator", address)
        call("start", run_file(tmp_path), "--run-id", "r", "--json", *at)
        call("cancel", "r", *at)
        watched = call("watch", "r", "--json", *at)
        assert json.loads(watched.stdout)["state"] == "cancelled"
        assert watched.exit_code == 1
