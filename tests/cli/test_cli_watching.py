"""Watching goes on by sequence when the orchestrator restarts, and lists print as JSON."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tutelage.cli import adapters, runs, watching
from tutelage.cli.listing import plain
from tutelage.domain.errors import InvalidInput, Unavailable
from tutelage.domain.run import LogicalStudent, RunEvent, RunPhase, RunState, RunSummary

_AT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
_RUNNING = RunSummary("r", RunState.RUNNING, RunPhase.EVALUATING, 1, 2, 3, 16, 0.25, 90.0, "", "", _AT, None)
_DONE = replace(_RUNNING, state=RunState.DONE, phase=RunPhase.ENDED, evaluations_done=16, seconds_left=0.0)


def event(sequence: int) -> RunEvent:
    return RunEvent(sequence, _AT, "evaluation_done", {"student": "ada", "reward": 0.5})


class RestartingOrchestrator:
    """A client whose stream breaks after each of its given pieces."""

    def __init__(self, pieces: Sequence[Sequence[tuple[RunSummary, RunEvent | None]]]) -> None:
        self._pieces = list(pieces)
        self.asked: list[int] = []

    async def watch_run(
        self, run_id: str, after_sequence: int = 0
    ) -> AsyncIterator[tuple[RunSummary, RunEvent | None]]:
        self.asked.append(after_sequence)
        if not self._pieces:
            raise Unavailable("gone")
        for item in self._pieces.pop(0):
            yield item
        if self._pieces:
            raise Unavailable("restarting")

    async def get_run(self, run_id: str) -> tuple[RunSummary, str]:
        return _DONE, ""


def follow(client: Any, console: Console) -> RunSummary:
    return asyncio.run(watching.follow(client, "r", watching.PlainDisplay(console), patience_s=30))


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_FIRST_PAUSE_S", 0.0)


@pytest.mark.usefixtures("_no_pause")
def test_goes_on_after_the_last_sequence_seen() -> None:
    client = RestartingOrchestrator(
        [[(_RUNNING, event(1)), (_RUNNING, event(2))], [(_RUNNING, event(3)), (_DONE, None)]]
    )
    output = io.StringIO()
    last = follow(client, Console(file=output))
    assert last.state is RunState.DONE
    assert client.asked == [0, 2]
    text = output.getvalue()
    assert text.count("evaluation_done") == 3
    assert "restarting" in text
    assert "16/16 evaluations" in text


@pytest.mark.usefixtures("_no_pause")
def test_a_run_that_ended_meanwhile_is_told_to_its_end() -> None:
    pieces: list[list[tuple[RunSummary, RunEvent | None]]] = [
        [(_RUNNING, event(1))],
        [(_DONE, None), (_DONE, event(2)), (_DONE, event(3)), (_DONE, None)],
    ]
    client = RestartingOrchestrator(pieces)
    told: list[int] = []
    display = watching.PlainDisplay(Console(file=io.StringIO()))
    follow = watching.follow(client, "r", display, 30, lambda event: told.append(event.sequence))  # type: ignore[arg-type]
    assert asyncio.run(follow).state is RunState.DONE
    assert told == [1, 2, 3]


@pytest.mark.usefixtures("_no_pause")
def test_never_reached_is_an_error_at_once() -> None:
    with pytest.raises(Unavailable):
        follow(RestartingOrchestrator([]), Console(file=io.StringIO()))


def test_live_display_shows_where_the_run_is() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    with watching.LiveDisplay(console) as display:
        display.show(_RUNNING, event(1))
    assert "3/16 evaluations" in output.getvalue()
    assert "1 min 30 s" in output.getvalue()


class _Client:
    async def __aenter__(self) -> _Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def list_runs(self) -> tuple[RunSummary, ...]:
        return (_DONE,)

    async def list_students(self) -> tuple[LogicalStudent, ...]:
        return (LogicalStudent("ada", "127.0.0.1:1", "m", "ab" * 32, _AT, ("cd" * 32,), True),)

    async def set_current_adapter(self, student: str, expected_version: str, version: str) -> LogicalStudent:
        assert expected_version == "ab" * 32
        return LogicalStudent(student, "127.0.0.1:1", "m", version, _AT)


def test_lists_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "orchestrator_client", lambda address: _Client())
    monkeypatch.setattr(adapters, "orchestrator_client", lambda address: _Client())
    listed = json.loads(CliRunner().invoke(runs.app, ["list", "--json"]).stdout)
    assert listed[0]["state"] == "done"
    assert listed[0]["created_at"] == _AT.isoformat()
    students = json.loads(CliRunner().invoke(adapters.app, ["list", "--json"]).stdout)
    assert students[0]["previous_adapter_versions"] == ["cd" * 32]


@pytest.mark.parametrize(("given", "becomes"), [(None, "cd" * 32), ("cdcd", "cd" * 32), ("base", "")])
def test_rollback_names_a_version(monkeypatch: pytest.MonkeyPatch, given: str | None, becomes: str) -> None:
    monkeypatch.setattr(adapters, "orchestrator_client", lambda address: _Client())
    arguments = ["rollback", "ada", *([given] if given else []), "--json"]
    result = CliRunner().invoke(adapters.app, arguments)
    assert json.loads(result.stdout)["current_adapter_version"] == becomes


def test_unknown_version_lists_those_there_are() -> None:
    student = LogicalStudent("ada", "a", "m", "ab" * 32, _AT)
    with pytest.raises(InvalidInput, match="abababababab"):
        adapters.full_version(student, "ffff")


def test_plain_values() -> None:
    shown = plain({"run": _DONE, "path": Path("x"), "other": SimpleNamespace})
    assert shown["run"]["phase"] == "ended"
    assert shown["path"] == "x"


def test_run_ids_are_what_the_contract_allows() -> None:
    assert runs.new_run_id("My Run: öl").startswith("my-run-l-")
    assert len(runs.new_run_id("x" * 200)) <= 64


@pytest.mark.parametrize("terminal", [True, False])
def test_who_is_interrupted_hears_that_the_run_goes_on(terminal: bool, capsys: pytest.CaptureFixture[str]) -> None:
    class Silent:
        async def watch_run(self, run_id: str, after_sequence: int = 0) -> AsyncIterator[tuple[RunSummary, None]]:
            yield _RUNNING, None
            await asyncio.Event().wait()

    async def body() -> None:
        console = Console(file=io.StringIO(), force_terminal=terminal)

        async def watch() -> None:
            with watching.left_running("r"):
                await watching.follow_on(console, Silent(), "r", 30)  # type: ignore[arg-type]

        watched = asyncio.create_task(watch())
        await asyncio.sleep(0.1)
        watched.cancel()
        await watched

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(body())
    told = capsys.readouterr().err
    assert told == "run r goes on; to follow it: tutelage run watch r; to end it: tutelage run cancel r\n"


def test_what_a_run_waits_for_is_in_its_line() -> None:
    waiting = replace(_RUNNING, message="student 'ada' did not answer when last asked")
    assert watching.summary_text(waiting).endswith("left  student 'ada' did not answer when last asked")


def test_the_time_that_is_left_is_said_to_be_of_evaluations() -> None:
    updating = replace(_RUNNING, phase=RunPhase.UPDATING, evaluations_done=16, seconds_left=0.0)
    assert "  0 s of evaluations left" in watching.summary_text(updating)
