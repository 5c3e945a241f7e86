"""An inbox's folder on a real disk: a file is taken in or put aside, and one that is stuck holds up nothing else."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator import inbox_folder, inbox_worker
from orchestrator.inbox_config import InboxConfig
from orchestrator.inbox_folder import take_in
from orchestrator.inboxes import Inboxes
from tests.adapt.opened_inbox import DOCUMENTS, DONE, NIGHT, Clock, document, opened, until
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.settings import parse_settings

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


def _dropped(folder: Path, name: str, *items: TaskWithQuiz) -> None:
    lines = [
        json.dumps(
            {
                "id": item.task.id,
                "title": item.task.content.title,
                "text": item.task.content.text,
                "questions": [
                    {"id": each.id, "question": each.text, "answer": each.answer} for each in item.quiz.questions
                ],
            }
        )
        for item in items
        if isinstance(item.task.content, DocumentTask)
    ]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.usefixtures("quick_inbox")
def test_files_dropped_in_the_folder_are_taken_in_or_put_aside(world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()

    async def emptied() -> None:
        def left() -> bool:
            return any(path.is_file() and not path.is_symlink() and path.suffix != ".part" for path in folder.iterdir())

        while left():  # noqa: ASYNC110 - files tell no event
            await asyncio.sleep(0.02)

    async def body() -> None:
        await world.up()
        clock = Clock(NIGHT + timedelta(hours=5))
        _dropped(folder, "first.jsonl", *DOCUMENTS[:2])
        _dropped(folder, "half.part", DOCUMENTS[4])
        (folder / "broken.jsonl").write_text('{"id": "x"', encoding="utf-8")
        (folder / "link.jsonl").symlink_to(folder / "half.part")
        async with opened(world, clock, folder=str(folder)) as (_, inboxes):
            await asyncio.wait_for(emptied(), 20)
            found = await inboxes.documents("news")
            assert [(item.id, item.source) for item in found] == [("d0", "first.jsonl"), ("d1", "first.jsonl")]
            assert (folder / "taken" / "first.jsonl").exists()
            assert (folder / "refused" / "broken.jsonl").exists()
            assert "broken.jsonl:1" in (folder / "refused" / "broken.jsonl.why.txt").read_text()
            # The same file again, as after a stop between storing and moving, and one that contradicts it.
            _dropped(folder, "first.jsonl", *DOCUMENTS[:2])
            _dropped(folder, "other.jsonl", document("d0", "Another text."))
            await asyncio.wait_for(emptied(), 20)
            assert len(await inboxes.documents("news")) == 2
            assert (folder / "taken" / "first-2.jsonl").exists()
            assert "other content" in (folder / "refused" / "other.jsonl.why.txt").read_text()
            assert (folder / "half.part").exists()
            assert (folder / "link.jsonl").is_symlink()
            clock.now = NIGHT + timedelta(days=1)
            await until(inboxes, DONE, DONE)
        await world.down()

    asyncio.run(body())


@pytest.mark.usefixtures("quick_inbox")
def test_a_file_that_is_still_written_is_left_alone(world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()

    async def body() -> None:
        await world.up()
        _dropped(folder, "fresh.jsonl", DOCUMENTS[0])
        async with opened(world, Clock(), folder=str(folder), settle_s=60) as (_, inboxes):
            await asyncio.sleep(0.4)
            assert await inboxes.documents("news") == []
        assert (folder / "fresh.jsonl").exists()
        await world.down()

    asyncio.run(body())
