"""An inbox's folder on a real disk: whatever the system refuses for one file keeps nothing else from being learned."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator import inbox_folder, inbox_worker
from orchestrator.inbox_config import InboxConfig
from orchestrator.inbox_folder import take_in
from orchestrator.inboxes import Inboxes
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.settings import parse_settings

NIGHT = datetime(2026, 5, 4, 2, 10, tzinfo=UTC)
RECIPE = {"students": ["a"], "candidates": 1, "policy": "initial", "window_minutes": 60, "settle_s": 0}


def _line(name: str) -> str:
    question = {"id": "q", "question": "What?", "answer": "That"}
    return json.dumps({"id": name, "title": name, "text": "Text.", "questions": [question]}) + "\n"


def test_a_file_that_cannot_be_moved_keeps_nothing_else_from_being_learned(
    world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("LOOK_S", "RUN_LOOK_S", "FAULT_S"):
        monkeypatch.setattr(inbox_worker, name, 0.05)
    folder = tmp_path / "drop"
    folder.mkdir()
    # Where refused files go is no folder: the system refuses the move, also to the administrator.
    (folder / "refused").write_text("", encoding="utf-8")
    (folder / "a.jsonl").write_text("{", encoding="utf-8")
    (folder / "b.jsonl").write_text(_line("dropped"), encoding="utf-8")
    submitted = TaskWithQuiz(Task("sent", DocumentTask("sent", "Text.")), Quiz((Question("q", "What?", "That"),)))

    async def body() -> None:
        await world.up()
        config = parse_settings(RECIPE | {"folder": str(folder)}, InboxConfig)
        async with world.engine() as engine:
            inboxes = Inboxes(engine, {"news": config}, lambda: NIGHT)
            await inboxes.start()
            try:
                await inboxes.submit("news", [submitted])
                while (await inboxes.inbox("news")).done != 2:  # noqa: ASYNC110 - the database tells no event
                    await asyncio.sleep(0.05)
            finally:
                await inboxes.stop()
        await world.down()

    with caplog.at_level(logging.ERROR, "orchestrator.inbox_folder"):
        asyncio.run(asyncio.wait_for(body(), 60))
    assert (folder / "a.jsonl").exists()
    assert (folder / "taken" / "b.jsonl").exists()
    # Told once, and not at every look.
    told = [each.getMessage() for each in caplog.records if "a.jsonl can be neither" in each.getMessage()]
    assert len(told) == 1


def test_what_was_stuck_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[TaskWithQuiz] = []
    stuck: dict[Path, float] = {}

    async def submit(tasks: Any, _: str) -> int:
        stored.extend(tasks)
        return len(tasks)

    async def look(folder: Path) -> int:
        return await take_in(folder, 0, False, submit, stuck)

    folder = tmp_path / "drop"
    folder.write_text("", encoding="utf-8")
    assert asyncio.run(look(folder)) == 0
    assert list(stuck) == [folder]
    folder.unlink()
    folder.mkdir()
    (folder / "a.jsonl").write_text(_line("one"), encoding="utf-8")
    assert asyncio.run(look(folder)) == 0
    stuck.clear()
    assert asyncio.run(look(folder)) == 1
    assert [each.task.id for each in stored] == ["one"]
    monkeypatch.setattr(inbox_folder, "MOST_DOCUMENTS", 2)
    (folder / "many.jsonl").write_text("".join(_line(f"d{n}") for n in range(3)), encoding="utf-8")
    assert asyncio.run(look(folder)) == 0
    assert "at most 2 at once" in (folder / "refused" / "many.jsonl.why.txt").read_text(encoding="utf-8")
