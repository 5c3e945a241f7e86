"""A teacher or orchestrator that goes away while questions are made costs none of those that are there."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.metrics import RETRIES
from tests.adapt.asking_teacher import TEXT
from tutelage.cli import quiz
from tutelage.cli.main import app
from tutelage.client import SyncOrchestratorClient
from tutelage.documents import read_tasks
from tutelage.domain.errors import InvalidInput, TutelageError, Unavailable
from tutelage.domain.made_quiz import MadeQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.rpc.config import ChannelSettings

IDS = [f"d{number}" for number in range(40)]
"""Three groups: 16, 16 and 8."""


class Maker:
    """A client that makes a question a document; `faults` says how often each of its calls breaks, `calls` are told."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.faults: dict[str, int] = {}

    async def __aenter__(self) -> Maker:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def make_quizzes(self, tasks: Sequence[Task], questions: int, **_: Any) -> tuple[MadeQuiz, ...]:
        first = tasks[0].id
        self.calls.append([task.id for task in tasks])
        if self.faults.get(first, 0) > 0:
            self.faults[first] -= 1
            raise Unavailable("the teacher restarts")
        return tuple(
            MadeQuiz(Quiz((Question("made-1", f"What of {task.id}?", "wax", f"Lamp {task.id}"),))) for task in tasks
        )


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Maker:
    made = Maker()
    monkeypatch.setattr(quiz, "orchestrator_client", lambda address: made)
    monkeypatch.setattr(quiz, "FIRST_PAUSE_S", 0.001)
    return made


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Forty without questions."""
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(_line(name) for name in IDS), encoding="utf-8")
    return path


def _line(name: str, text: str = TEXT, **more: Any) -> str:
    return json.dumps({"id": name, "title": f"Lamp {name}", "text": text, **more}) + "\n"


def _ask(documents: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["quiz", str(documents), *options])


def _ids(output: Path) -> list[str]:
    """The documents of the output: each with its question, on a whole line."""
    assert output.read_bytes().endswith(b"\n")
    tasks = read_tasks(output)
    assert [[each.text for each in item.quiz.questions] for item in tasks] == [
        [f"What of {item.task.id}?"] for item in tasks
    ]
    return [item.task.id for item in tasks]


def test_a_group_that_breaks_once_is_made_again_and_no_other(maker: Maker, documents: Path, tmp_path: Path) -> None:
    output = tmp_path / "asked.jsonl"
    maker.faults = {"d32": 1}
    told = _ask(documents, "-o", str(output))
    assert told.exit_code == 0, told.output
    assert _ids(output) == IDS
    assert [len(call) for call in maker.calls] == [16, 16, 8, 8]
    assert told.stderr.count("no questions now (the teacher restarts); trying again\n") == 1


def test_what_was_made_before_a_fault_is_there_and_the_same_command_goes_on_after_it(
    maker: Maker, documents: Path, tmp_path: Path
) -> None:
    output = tmp_path / "asked.jsonl"
    maker.faults = {"d32": 1}
    assert isinstance(_ask(documents, "-o", str(output), "--patience-s", "0").exception, Unavailable)
    assert _ids(output) == IDS[:32]
    maker.calls.clear()
    told = _ask(documents, "-o", str(output))
    assert told.exit_code == 0, told.output
    assert maker.calls == [IDS[32:]]
    assert _ids(output) == IDS
    assert f"{output}: 32 of 40 documents are there already and skipped; --overwrite begins anew\n" in told.stderr
    # What a person made of it stays, too; what is all there asks nobody.
    edited = output.read_text(encoding="utf-8").replace("What of d3?", "What is it?")
    output.write_text(edited, encoding="utf-8")
    told = _ask(documents, "-o", str(output))
    assert "40 of 40 documents are there already" in told.stderr
    assert (maker.calls, output.read_text(encoding="utf-8")) == ([IDS[32:]], edited)


@pytest.mark.parametrize("cut", [1, 7, 60, -1])
def test_a_line_on_which_a_command_was_cut_off_is_made_again(
    maker: Maker, documents: Path, tmp_path: Path, cut: int
) -> None:
    output = tmp_path / "asked.jsonl"
    assert _ask(documents, "-o", str(output)).exit_code == 0
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:34]) + lines[34][:cut])
    maker.calls.clear()
    assert _ask(documents, "-o", str(output)).exit_code == 0
    # Without its end alone the line is whole.
    assert maker.calls == [IDS[35 if cut == -1 else 34 :]]
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (_line("d0") + _line("stranger"), "asked.jsonl: id"),
        (_line("d0") + _line("d1", "Another text."), "asked.jsonl: d1"),
        ("a list of errands", "asked.jsonl:1"),
        (_line("d0", topics=["lamps"]), "asked.jsonl:1: topics"),
    ],
)
def test_a_file_of_something_else_is_refused_as_it_is_and_begun_anew_only_where_that_is_asked(
    maker: Maker, documents: Path, tmp_path: Path, content: str, field: str
) -> None:
    output = tmp_path / "asked.jsonl"
    output.write_text(content, encoding="utf-8")
    error = _ask(documents, "-o", str(output)).exception
    assert isinstance(error, InvalidInput)
    (violation,) = error.violations
    assert violation.field.endswith(field)
    assert violation.allowed.endswith("; --overwrite begins anew")
    assert (output.read_text(encoding="utf-8"), maker.calls) == (content, [])
    assert _ask(documents, "-o", str(output), "--overwrite").exit_code == 0
    assert _ids(output) == IDS


def test_the_documents_are_not_written_over(maker: Maker, documents: Path) -> None:
    before = documents.read_bytes()
    for option in ([], ["--overwrite"]):
        assert isinstance(_ask(documents, "-o", str(documents), *option).exception, InvalidInput)
    assert (documents.read_bytes(), maker.calls) == (before, [])


def test_what_is_begun_anew_stays_until_something_is_made_and_nobody_who_was_never_there_is_waited_for(
    maker: Maker, documents: Path, tmp_path: Path
) -> None:
    output = tmp_path / "asked.jsonl"
    output.write_text("as it was", encoding="utf-8")
    maker.faults = {"d0": 1}
    assert isinstance(_ask(documents, "-o", str(output), "--overwrite").exception, Unavailable)
    assert output.read_text(encoding="utf-8") == "as it was"
    assert len(maker.calls) == 1


def test_a_path_that_cannot_be_written_is_told_before_anything_is_made(
    maker: Maker, documents: Path, tmp_path: Path
) -> None:
    assert isinstance(_ask(documents, "-o", str(tmp_path / "nowhere" / "asked.jsonl")).exception, FileNotFoundError)
    assert maker.calls == []


def test_standard_output_and_a_pipe_get_everything_at_the_end(maker: Maker, documents: Path, tmp_path: Path) -> None:
    maker.faults = {"d32": 1}
    broken = _ask(documents, "--patience-s", "0")
    assert isinstance(broken.exception, Unavailable)
    assert broken.stdout == ""
    told = _ask(documents)
    assert [json.loads(line)["id"] for line in told.stdout.splitlines()] == IDS
    pipe, read = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    assert _ask(documents, "-o", str(pipe)).exit_code == 0
    reader.join(30)
    assert read == [told.stdout]


def test_documents_with_questions_stand_where_they_stood(maker: Maker, tmp_path: Path) -> None:
    path, output = tmp_path / "documents.jsonl", tmp_path / "asked.jsonl"
    given: dict[str, Any] = {"questions": [{"question": "What is it?", "answer": "a lamp"}]}
    names = [name for each in IDS for name in (each, f"given-{each}")]
    lines = [_line(name, **(given if name.startswith("given") else {})) for name in names]
    path.write_text("".join(lines), encoding="utf-8")
    assert _ask(path, "-o", str(output)).exit_code == 0
    assert [len(call) for call in maker.calls] == [16, 16, 8]
    tasks = read_tasks(output)
    assert [item.task.id for item in tasks] == names
    assert {item.quiz.questions[0].id for item in tasks if item.task.id.startswith("given")} == {
        f"given-{each}-q1" for each in IDS
    }


def _three(folder: Path) -> Path:
    path = folder / "three.jsonl"
    path.write_text("".join(_line(name) for name in ("lamp", "other", "third")), encoding="utf-8")
    return path


@pytest.mark.parametrize("command", ["quiz", "adapt"])
@pytest.mark.parametrize("fault", [Unavailable("restarting"), TutelageError("the worker died")])
def test_a_teacher_that_breaks_is_asked_again_for_what_it_had_not_done_alone(
    asking: Any, served: Callable[..., Any], tmp_path: Path, command: str, fault: Exception
) -> None:
    output = tmp_path / "asked.jsonl"
    asking.breaks = {"other": [fault, fault], "answers": [fault]}
    options = {
        "quiz": ["-o", str(output)],
        "adapt": ["--student", "a", "--policy", "initial", "--make-questions", "5", "--json"],
    }
    arguments = [command, str(_three(tmp_path)), *options[command]]
    if command == "adapt":
        asking.breaks["third"] = [fault]
    with served() as address:
        told = CliRunner().invoke(app, [*arguments, "--orchestrator", address])
    assert told.exit_code == 0, told.output
    asked = [task_id for task_id, _ in asking.seen]
    assert asked == ["lamp", "other", "other", "other", *["third"] * (1 + (command == "adapt"))]
    assert [len(call.prompts) for call in asking.asked] == [7, 7]
    if command == "quiz":
        assert [len(item.quiz.questions) for item in read_tasks(output)] == [3, 2, 2]


def test_a_teacher_that_is_restarted_in_the_middle_of_a_group(
    asking: Any, served: Callable[..., Any], tmp_path: Path
) -> None:
    """Really away: its port is closed for a while."""
    output, restarts = tmp_path / "asked.jsonl", list[Any]()

    async def restart() -> None:
        await asking.teacher.down()
        await asyncio.sleep(0.5)
        await asking.teacher.up()

    async def meanwhile(task_id: str) -> None:
        if task_id == "other" and not restarts:
            restarts.append(asyncio.get_running_loop().create_task(restart()))
            await asyncio.sleep(30)

    asking.meanwhile = meanwhile
    with served() as address:
        told = CliRunner().invoke(app, ["quiz", str(_three(tmp_path)), "-o", str(output), "--orchestrator", address])
    assert told.exit_code == 0, told.output
    assert [task_id for task_id, _ in asking.seen] == ["lamp", "other", "other", "third"]
    assert [len(item.quiz.questions) for item in read_tasks(output)] == [3, 2, 2]


def test_a_teacher_is_not_asked_again_for_a_client_that_left(asking: Any, served: Callable[..., Any]) -> None:
    asking.breaks = {"lamp": [Unavailable("restarting")] * 10_000}
    with served() as address, SyncOrchestratorClient(ChannelSettings(address=address)) as client:
        with pytest.raises(Unavailable, match="in time"):
            client.make_quizzes([Task("lamp", DocumentTask("Lamp", TEXT))], 2, timeout_s=1)
        assert RETRIES.labels("teacher")._value.get() > 1
        time.sleep(0.5)
        asked = len(asking.seen)
        time.sleep(1.2)
        assert len(asking.seen) == asked


def test_an_orchestrator_that_is_restarted_in_the_middle_of_a_group(
    asking: Any, served: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quiz, "MET_S", 0.0)
    begun, told = threading.Event(), list[Any]()

    async def meanwhile(task_id: str) -> None:
        if task_id == "other" and not begun.is_set():
            begun.set()
            await asyncio.sleep(30)

    asking.meanwhile = meanwhile
    output = tmp_path / "asked.jsonl"
    with served() as address:
        arguments = ["quiz", str(_three(tmp_path)), "-o", str(output), "--orchestrator", address]
        asks = threading.Thread(target=lambda: told.append(CliRunner().invoke(app, arguments)))
        asks.start()
        assert begun.wait(30)
    with served(server={"port": int(address.rpartition(":")[2])}):
        asks.join(60)
    (shown,) = told
    assert shown.exit_code == 0, (shown.output, shown.exception)
    assert "; trying again\n" in shown.stderr
    assert [len(item.quiz.questions) for item in read_tasks(output)] == [3, 2, 2]
