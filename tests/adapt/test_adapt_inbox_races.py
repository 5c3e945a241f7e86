"""An inbox's batch is begun or taken back, never both: else two runs would teach a student the same document."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator import inbox_worker
from orchestrator.database import database_url
from orchestrator.inbox_config import InboxConfig
from orchestrator.inbox_rows import Ending, InboxRows
from orchestrator.inboxes import Inboxes
from orchestrator.schedule import Begin, Window
from orchestrator.store import Store
from orchestrator.store_fault import StoreFault
from tutelage.domain.errors import PreconditionFailed
from tutelage.domain.inbox import InboxDocumentState
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.settings import parse_settings

NIGHT = datetime(2026, 5, 4, 2, 10, tzinfo=UTC)
RECIPE = {"students": ["a", "b"], "candidates": 2, "policy": "initial", "window_minutes": 60}
DOCUMENTS = tuple(
    TaskWithQuiz(Task(f"d{n}", DocumentTask(f"Title {n}", "Text.")), Quiz((Question("q", "What?", "That"),)))
    for n in range(6)
)
WAITS = InboxDocumentState.WAITING


async def _races(make_world: Any, url: str) -> None:
    """Each document is a batch of an inbox of its own, begun and taken back at once."""
    world = make_world(url)
    world.a.delay_s = world.b.delay_s = 60
    await world.up()
    window = Window(datetime(2026, 5, 4, 2, 0, tzinfo=UTC))
    recipe = parse_settings(RECIPE, InboxConfig).run_yaml("inbox")
    async with world.engine() as engine:
        rows = InboxRows(engine.store.engine)

        async def begun(run_id: str, document: TaskWithQuiz) -> bool:
            try:
                return bool((await engine.start_run(run_id, recipe, [document], Quiz()))[1])
            except PreconditionFailed as error:
                assert "taken back" in str(error)  # noqa: PT017 - the other outcome is as good
                return False

        ends = Counter[str]()
        for number, document in enumerate(DOCUMENTS):
            name, run_id = f"begun{number}", f"inbox-begun-{number}"
            await rows.submit(name, [document], "submitted")
            assert await rows.claim(name, run_id, Begin(window, (document.task.id,), 10))
            batch = await rows.open_batch(name)
            assert batch is not None
            endings = {document.task.id: Ending(WAITS, 0, "")}

            async def taken_back(batch: Any = batch, endings: Any = endings, number: int = number) -> bool:
                await asyncio.sleep(0.02 * number)
                return await rows.settle(batch, 0, endings, begun=False)

            won = await asyncio.gather(begun(run_id, document), taken_back())
            assert sum(won) == 1, won
            assert (run_id in await engine.store.run_ids()) is won[0]
            assert (await rows.counts(name))["waiting"] == won[1]
            assert (await rows.last_window(name)) == Window(window.start, 10 if won[0] else 0, 1)
            ends["begun" if won[0] else "taken back"] += 1
            # Whoever comes later finds it as it is.
            if won[0]:
                assert not await rows.settle(batch, 0, endings, begun=False)
                assert not await begun(run_id, document)
            else:
                with pytest.raises(PreconditionFailed):
                    await engine.start_run(run_id, recipe, [document], Quiz())
    await world.down()


def test_a_batch_is_begun_or_taken_back_on_sqlite(make_world: Any, tmp_path: Path) -> None:
    asyncio.run(_races(make_world, f"sqlite:///{tmp_path / 'races.sqlite'}"))


def test_a_batch_is_begun_or_taken_back_on_postgresql(make_world: Any, postgres: str) -> None:
    asyncio.run(_races(make_world, postgres))


def test_submissions_of_the_same_documents_in_different_orders_wait_for_no_circle(
    make_world: Any, postgres: str
) -> None:
    many = [replace(DOCUMENTS[0], task=replace(DOCUMENTS[0].task, id=f"d{number:03}")) for number in range(150)]

    async def body() -> None:
        world = make_world(postgres)
        store = await Store.open(database_url(world.settings()))
        rows = InboxRows(store.engine)
        taken = await asyncio.gather(*(rows.submit("orders", each, "submitted") for each in (many, many[::-1]) * 2))
        assert sum(taken) == len(many)
        # They wait in the order they were given, whoever came first.
        order = [int(each[1:]) for each in await rows.waiting("orders", len(many))]
        assert order in (list(range(150)), list(range(150))[::-1])
        await store.close()

    asyncio.run(body())


def test_a_run_that_was_begun_although_its_start_broke_keeps_its_documents(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database goes away right after the run was stored, and the window closes before it is back."""
    for name in ("LOOK_S", "RUN_LOOK_S", "FAULT_S"):
        monkeypatch.setattr(inbox_worker, name, 0.05)
    now = [NIGHT]
    broken = 0

    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            inboxes = Inboxes(engine, {"news": parse_settings(RECIPE, InboxConfig)}, lambda: now[0])
            start = engine.start_run

            async def breaks(*given: Any) -> Any:
                nonlocal broken
                await start(*given)
                broken += 1
                now[0] = NIGHT + timedelta(hours=3)
                raise StoreFault("the connection was lost")

            engine.start_run = breaks
            await inboxes.start()
            try:
                await inboxes.submit("news", DOCUMENTS[:1])
                seen: set[InboxDocumentState] = set()
                while InboxDocumentState.DONE not in seen:
                    seen |= {item.state for item in await inboxes.documents("news")}
                    if broken:
                        assert WAITS not in {item.state for item in await inboxes.documents("news")}
                    await asyncio.sleep(0.02)
            finally:
                await inboxes.stop()
            assert broken == 1
            (run_id,) = await engine.store.run_ids()
            kept = [row["student"] for row in await engine.store.commits(run_id) if row["committed"]]
            assert sorted(kept) == ["a", "b"]
        await world.down()

    asyncio.run(asyncio.wait_for(body(), 60))
