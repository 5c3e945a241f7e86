"""The store on SQLite, and on PostgreSQL where there is one: written once means once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from orchestrator.database import database_url, migrate
from orchestrator.evaluation_entries import Begun, Ended, TriedAgain
from orchestrator.run_events import Evaluate
from orchestrator.runner import STORE_FAULTS
from orchestrator.schema import metadata
from orchestrator.store import Store
from orchestrator.store_fault import StoreContradiction, StoreFault
from orchestrator.student_rows import StudentRows, before_and_left
from tutelage.domain.errors import Conflict, InvalidInput, NotFound
from tutelage.domain.evaluation import Failure
from tutelage.domain.reward import Reward
from tutelage.domain.run import RunState
from tutelage.domain.task import Quiz


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, world: Any) -> Any:
    return world.url if request.param == "sqlite" else request.getfixturevalue("postgres")


@asynccontextmanager
async def started(world: Any, url: str) -> AsyncIterator[Any]:
    """A stored run whose students never answer, in an emptied database."""
    world.url = url
    world.a.delay_s = world.b.delay_s = 60
    store = await Store.open(database_url(world.settings()))
    async with store.engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            await connection.execute(table.delete())
    await store.close()
    await world.up()
    try:
        async with world.engine() as engine:
            await world.start(engine)
            yield engine
    finally:
        await world.down()


def test_a_reward_is_written_once(world: Any, url: str) -> None:
    async def body() -> None:
        async with started(world, url) as engine:
            work = Evaluate(1, "t1", "edit", "a", 0)
            begun = Begun("e" * 64, work, "round", "", 1)
            candidate_ids = ["run/1/t1/0", "run/1/t1/1"]
            assert await engine.store.write("run", [begun, begun]) == [True, False]
            assert await engine.store.write("run", [TriedAgain("e" * 64, "a", {})]) == [True]

            async def write(value: float) -> Any:
                reward = Reward(value, {"gain_contains": value})
                ended = Ended(begun, Failure("x", False), reward, 1.0, 2, candidate_ids, "one:1")
                return await engine.store.write("run", [ended, ended])

            changed = await asyncio.gather(*(write(float(number)) for number in range(8)))
            assert sorted(changed) == [[False, False]] * 7 + [[True, False]]
            rows = [row for row in await engine.store.reward_rows("run") if row[3] == "e" * 64]
            assert sorted(row[0] for row in rows) == candidate_ids
            done = [each for each in await engine.store.events("run") if each.kind == "evaluation_done"]
            assert len(done) == 1
            stored = (await engine.store.evaluations("run", evaluation_id="e" * 64))[0]
            assert (stored.final, stored.reward, stored.attempts) == (True, float(changed.index([True, False])), 2)
            assert stored.replica == "one:1"
            assert await engine.store.write("run", [begun, TriedAgain("e" * 64, "a", {})]) == [False, False]

    asyncio.run(body())


def test_one_of_many_wins_a_compare_and_set(world: Any, url: str) -> None:
    async def body() -> None:
        async with started(world, url) as engine:
            rows = StudentRows(engine.store.engine)
            versions = [f"v{number}" for number in range(8)]
            results = await asyncio.gather(
                *(rows.compare_and_set("a", "", version) for version in versions), return_exceptions=True
            )
            won = [each for each in results if not isinstance(each, BaseException)]
            assert len(won) == 1
            assert sum(isinstance(each, Conflict) for each in results) == 7
            current = await rows.current("a")
            assert current.version == won[0].version
            assert current.previous == ("",)
            back = await rows.compare_and_set("a", current.version, "")
            assert (back.previous, back.left) == ((), (current.version,))

    asyncio.run(body())


@pytest.mark.parametrize(
    ("line", "previous", "left"),
    [
        ([""], (), ()),
        (["", "1", "2", "3"], ("2", "1", ""), ()),
        (["", "1", "2", "3", "2"], ("1", ""), ("3",)),
        (["", "1", "2", "3", "2", "1"], ("",), ("2", "3")),
        (["", "1", "2", "3", "1"], ("",), ("3", "2")),
        (["", "1", "2", "3", "1", "4"], ("1", ""), ("3", "2")),
        (["", "1", "2", "1", "2"], ("1", ""), ()),
    ],
)
def test_going_back_leaves_no_trace_among_the_versions_before(
    line: list[str], previous: tuple[str, ...], left: tuple[str, ...]
) -> None:
    assert before_and_left(line) == (previous, left)


def test_a_commit_moves_the_version_with_its_record_or_not_at_all(world: Any, url: str) -> None:
    async def body() -> None:
        async with started(world, url) as engine:
            rows = StudentRows(engine.store.engine)
            row = {
                "student": "a",
                "task_id": "t1",
                "candidate_id": "run/1/t1/0",
                "evaluation_id": "e",
                "committed": True,
                "reason": "",
                "version": "new",
                "parent_version": "",
            }
            await rows.compare_and_set("a", "", "other")
            with pytest.raises(Conflict):
                await engine.store.add_commit("run", row, {})
            assert await engine.store.commits("run") == []
            await rows.compare_and_set("a", "other", "")
            await engine.store.add_commit("run", row, {})
            await engine.store.add_commit("run", row, {})
            assert (await rows.current("a")).version == "new"
            assert len(await engine.store.commits("run")) == 1

    asyncio.run(body())


def test_a_run_ends_once_and_reads_back_as_it_was_started(world: Any, url: str) -> None:
    async def body() -> None:
        async with started(world, url) as engine:
            run = await engine.store.run("run")
            assert tuple(run.tasks.values()) == world.tasks
            assert tuple(run.students) == ("a", "b")
            assert run.students["a"].description.engine_revision == "e1"
            assert await engine.store.end_run("run", RunState.CANCELLED, "")
            assert not await engine.store.end_run("run", RunState.DONE, "")
            assert (await engine.store.run("run")).state is RunState.CANCELLED

    asyncio.run(body())


def test_migrations_make_the_tables_that_the_code_uses(world: Any, url: str) -> None:
    async def body() -> list[Any]:
        world.url = url
        store = await Store.open(database_url(world.settings()))
        await migrate(store.engine)
        async with store.engine.begin() as connection:
            found = await connection.run_sync(lambda each: compare_metadata(MigrationContext.configure(each), metadata))
        await store.close()
        return list(found)

    world.teacher.port = world.a.port = world.b.port = 1
    assert asyncio.run(body()) == []


def test_what_the_database_will_never_take_is_not_tried_for_ever(world: Any, url: str) -> None:
    async def body() -> None:
        world.url = url
        store = await Store.open(database_url(world.settings()))
        with pytest.raises(StoreContradiction, match=r"(?i)foreign key") as told:
            await store.append("no such run", ("noted", {}))
        assert not isinstance(told.value, STORE_FAULTS)
        await store.close()

    asyncio.run(body())


def test_text_that_postgresql_does_not_hold_is_no_fault_of_the_database(world: Any, postgres: str) -> None:
    """A client would ask again, and a run wait, for as long as they are patient."""

    async def body() -> None:
        async with started(world, postgres) as engine:
            for call in (engine.summary, engine.cancel_run, engine.pause_run, engine.resume_run, engine.config_yaml):
                with pytest.raises(NotFound):
                    await call("a\0b")
            with pytest.raises(NotFound):
                await anext(engine.watch("a\0b", 0))
            task = world.tasks[0]
            named = replace(task, task=replace(task.task, id="a\0b"))
            with pytest.raises(InvalidInput, match=r"tasks\[0\]\.task\.id: .*without '/' and NUL"):
                await engine.start_run("named", world.config, [named], Quiz())
            with pytest.raises(StoreContradiction, match="NUL"):
                await engine.store.append("run", ("a\0b", {}))

    asyncio.run(body())


def test_a_run_whose_end_cannot_be_counted_leaves_no_exception_behind(world: Any) -> None:
    async def body() -> None:
        await world.up()
        async with world.engine() as engine:
            await world.start(engine)

            async def away() -> None:
                raise StoreFault("the database is away")

            engine._driving._changed = away
            task = engine._driving._driven["run"].task
            await asyncio.wait({task}, timeout=100)
            assert task.exception() is None
            assert (await engine.store.run_state("run"))[0] is RunState.DONE
        await world.down()

    asyncio.run(body())


def test_a_new_file_that_another_is_writing_to_is_waited_for(tmp_path: Path) -> None:
    """To switch a file to a write-ahead log SQLite wants it alone, and waits for nobody."""
    other = sqlite3.connect(tmp_path / "runs.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    leaving = threading.Timer(0.5, other.execute, ["COMMIT"])
    leaving.start()

    async def body() -> None:
        store = await Store.open(f"sqlite+aiosqlite:///{tmp_path / 'runs.sqlite'}")
        assert await store.run_ids() == []
        await store.close()

    asyncio.run(body())
    leaving.join()
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


def test_orchestrators_that_first_start_at_once_make_the_tables_once(
    world: Any, request: pytest.FixtureRequest
) -> None:
    async def body(url: str) -> None:
        stores = await asyncio.gather(*(Store.open(url) for _ in range(4)))
        assert [await store.run_ids() for store in stores] == [[]] * 4
        await asyncio.gather(*(store.close() for store in stores))

    asyncio.run(body(database_url(world.settings())))
    world.url = request.getfixturevalue("postgres")
    server = make_url(database_url(world.settings()))
    name = f"first_{uuid4().hex}"

    async def on_a_new_database() -> None:
        engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
        async with engine.connect() as connection:
            await connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            await body(server.set(database=name).render_as_string(hide_password=False))
        finally:
            async with engine.connect() as connection:
                await connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
            await engine.dispose()

    asyncio.run(on_a_new_database())
