"""A database that is full, read-only or away for a while: a clear error, nothing lost, and the run goes on after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from sqlalchemy import event, text

from orchestrator.config import OrchestratorSettings
from orchestrator.database import database_url
from orchestrator.schema import metadata
from orchestrator.service import OrchestratorService
from orchestrator.store import Store
from tutelage.domain.errors import InvalidInput, PreconditionFailed, Unavailable
from tutelage.domain.run import RunState
from tutelage.domain.task import DocumentTask, Quiz
from tutelage.rpc.server import serve
from tutelage.settings import parse_settings


@contextlib.asynccontextmanager
async def pragma(engine: Any, on: str, off: str) -> AsyncIterator[None]:
    """All connections of an engine under a pragma that makes SQLite refuse writes."""
    broken = True

    def checked_out(connection: Any, *_: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA {on if broken else off}")
        cursor.close()

    event.listen(engine.store.engine.sync_engine, "checkout", checked_out)
    yield
    broken = False


@contextlib.asynccontextmanager
async def full(world: Any, engine: Any) -> AsyncIterator[None]:
    async with engine.store.engine.connect() as connection:
        pages = await connection.scalar(text("PRAGMA page_count"))
    async with pragma(engine, f"max_page_count={pages}", "max_page_count=1073741823"):
        yield


@contextlib.asynccontextmanager
async def read_only(world: Any, engine: Any) -> AsyncIterator[None]:
    async with pragma(engine, "query_only=ON", "query_only=OFF"):
        yield


@contextlib.asynccontextmanager
async def away(world: Any, engine: Any) -> AsyncIterator[None]:
    """PostgreSQL's socket is gone, and the sessions that were open are ended."""
    import psycopg

    socket = Path(parse_qs(urlsplit(world.url).query)["host"][0]) / ".s.PGSQL.5432"
    with psycopg.connect(world.url, autocommit=True) as connection:
        os.rename(socket, socket.with_suffix(".hidden"))
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )
    try:
        yield
    finally:
        os.rename(socket.with_suffix(".hidden"), socket)


async def undisturbed(world: Any, tmp_path: Path) -> dict[Any, Any]:
    calm = type(world)(f"sqlite:///{tmp_path / 'calm.sqlite'}")
    await calm.up()
    try:
        async with calm.engine() as engine:
            await calm.start(engine)
            assert (await calm.done(engine)).state is RunState.DONE
            return await calm.rewards(engine)  # type: ignore[no-any-return]
    finally:
        await calm.down()


@pytest.mark.parametrize(("fault", "said"), [(full, "full"), (read_only, "readonly"), (away, "")])
def test_a_run_survives_a_database_that_cannot_be_used(
    world: Any, tmp_path: Path, request: pytest.FixtureRequest, fault: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        expected = await undisturbed(world, tmp_path)
        if fault is away:
            world.url = request.getfixturevalue("postgres")
            store = await Store.open(database_url(world.settings()))
            async with store.engine.begin() as connection:
                for table in reversed(metadata.sorted_tables):
                    await connection.execute(table.delete())
            await store.close()
        # Too large for pages that are there already.
        content = DocumentTask("Long", "A long text. " * 20_000)
        large = [replace(each, task=replace(each.task, content=content)) for each in world.tasks]
        await world.up()
        world.a.delay_s = world.b.delay_s = 0.05
        async with world.engine(run_lease_s=1.5) as engine:
            await world.start(engine)
            await world.until(lambda: len(world.a.trained) >= 4)
            async with fault(world, engine):
                with pytest.raises(Unavailable, match=f"database cannot be used now.*{said}"):
                    await engine.start_run("other", world.config, large, Quiz())
                await world.until(lambda: engine._driving.runner("run") is None)
                await asyncio.sleep(1.0)
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 0), summary.message
            assert await world.rewards(engine) == expected
            told = [record for record in caplog.records if "is not driven for now" in record.getMessage()]
            assert told
            # In one line: the driver's hundred lines say no more to whoever looks after the database.
            assert all("database cannot be used now" in each.getMessage() and not each.exc_info for each in told)
            # The same call is good again.
            assert (await engine.start_run("other", world.config, large, Quiz()))[1]
            await engine.cancel_run("other")
        for student in (world.a, world.b):
            assert len(set(student.trained)) == len(student.trained)
        await world.down()

    asyncio.run(asyncio.wait_for(body(), 200))


def test_calls_that_find_all_connections_in_use_are_told_to_come_again(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As while a database hangs, or a backup of the file holds its lock."""

    async def body() -> None:
        store = await Store.open(database_url(world.settings()))
        pool: Any = store.engine.pool
        monkeypatch.setattr(pool, "_timeout", 0.1)
        async with contextlib.AsyncExitStack() as taken:
            for _ in range(pool.size() + pool._max_overflow):
                await taken.enter_async_context(store.engine.connect())
            with pytest.raises(Unavailable, match="database cannot be used now: all connections are in use"):
                await store.run_ids()
        assert await store.run_ids() == []
        await store.close()

    asyncio.run(asyncio.wait_for(body(), 60))


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite:///{folder}/nowhere/x.sqlite", "nowhere/x.sqlite cannot be used now: unable to open database file"),
        ("sqlite:///{folder}/text", "text cannot be used now: file is not a database"),
        ("postgresql://me:secret@127.0.0.1:1/x", r"me:\*\*\*@127.0.0.1:1/x cannot be used now: .*Connection refused"),
    ],
)
def test_an_orchestrator_whose_database_cannot_be_used_ends_and_says_so(
    world: Any, tmp_path: Path, url: str, told: str
) -> None:
    (tmp_path / "text").write_text("no database, " * 100)
    settings = world.settings(database_url=url.format(folder=tmp_path), server={"grace_s": 0})
    with pytest.raises(Unavailable, match=told):
        asyncio.run(serve(OrchestratorService(settings), settings.server))


def test_an_orchestrator_whose_folder_cannot_be_made_ends_and_says_so(world: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "data"
    settings = world.settings(database_url=None, data_dir=folder, server={"grace_s": 0})
    with pytest.raises(OSError, match=str(folder)):
        asyncio.run(serve(OrchestratorService(settings), settings.server))


def test_an_orchestrator_says_that_a_newer_version_has_upgraded_its_database(world: Any) -> None:
    async def body() -> None:
        store = await Store.open(database_url(world.settings()))
        async with store.engine.begin() as connection:
            await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        await store.close()
        with pytest.raises(
            PreconditionFailed, match=r"orchestrator\.sqlite are not of this version .*9999.*: start the"
        ):
            await Store.open(database_url(world.settings()))

    asyncio.run(asyncio.wait_for(body(), 60))


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("mysql://host/name", "starts with sqlite: or postgresql:"),
        ("sqlite://", "sqlite:///file"),
        ("sqlite:///", "sqlite:///file"),
        ("sqlite:///:memory:", "sqlite:///file"),
        ("postgresql://user@host:port/name", "postgresql://user@host:port/name"),
    ],
)
def test_a_database_url_that_cannot_be_meant_is_named_before_anything_is_begun(url: str, allowed: str) -> None:
    settings = {"database_url": url, "teacher": {"address": "t:1"}, "students": {"a": {"address": "a:1"}}}
    with pytest.raises(InvalidInput) as caught:
        parse_settings(yaml.safe_dump(settings), OrchestratorSettings)
    (violation,) = caught.value.violations
    assert (violation.field, violation.value) == ("database_url", url)
    assert allowed in violation.allowed
