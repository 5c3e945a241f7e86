"""Two orchestrators on one database: one drives a run at a time, the other soon after the first one's death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError, OperationalError

from orchestrator.database import SILENT_S, database_url
from orchestrator.evaluation_entries import Begun
from orchestrator.leasing import Lease, LeaseLost
from orchestrator.owner import is_dead, this_owner
from orchestrator.run_events import Evaluate
from orchestrator.schema import runs
from orchestrator.store import Store
from orchestrator.store_fault import StoreFault
from tutelage.domain.run import RunState


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, world: Any) -> Any:
    return world.url if request.param == "sqlite" else request.getfixturevalue("postgres")


async def emptied(world: Any, url: str) -> None:
    from orchestrator.schema import metadata

    world.url = url
    store = await Store.open(database_url(world.settings()))
    async with store.engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            await connection.execute(table.delete())
    await store.close()


def test_a_lease_is_held_by_one_and_its_writes_end_with_it(world: Any, url: str) -> None:
    async def body() -> None:
        await emptied(world, url)
        await world.up()
        world.a.delay_s = world.b.delay_s = 60
        async with world.engine(run_lease_s=0.6) as engine:
            await world.start(engine)
            assert await engine.store.take("run", "other", 1.0) is None
            # Renewed three times a lease, it stays held.
            await asyncio.sleep(1.5)
            assert await engine.store.take("run", "other", 1.0) is None
            assert await engine.store.free_runs() == []
        # Given back at a clean stop.
        store = await Store.open(database_url(world.settings()))
        old = await store.take("run", "old", 0.1)
        assert old is not None
        held = store.fenced("run", old.epoch)
        begun = Begun("e" * 64, Evaluate(1, "t1", "x", "a", 0), "round", "", 1)
        assert await held.write("run", [begun]) == [True]
        await asyncio.sleep(0.2)
        assert await store.free_runs() == [("run", "old")]
        # Run out, but nobody else has it: what the old holder writes still counts, and it may prolong.
        await held.append("run", ("noted", {}))
        new = await store.take("run", "new", 30)
        assert new is not None
        assert new.epoch > old.epoch
        for write in (
            held.write("run", [begun]),
            held.append("run", ("noted", {})),
            held.end_run("run", RunState.DONE, ""),
            held.add_utilisation("run", {"teacher": (1.0, 1.0)}),
        ):
            with pytest.raises(LeaseLost):
                await write
        assert not (await store.renew(old, 30)).held
        assert (await store.renew(new, 30)).held
        assert (await store.run_state("run"))[0] is RunState.RUNNING
        await store.close()
        await world.down()

    asyncio.run(asyncio.wait_for(body(), 150))


def test_two_engines_share_the_runs_and_neither_is_driven_twice(world: Any, url: str) -> None:
    async def body() -> None:
        await emptied(world, url)
        await world.up()
        world.a.delay_s = world.b.delay_s = 0.05
        async with world.engine(run_lease_s=1) as one, world.engine(run_lease_s=1) as two:
            await world.start(one, "first")
            await world.start(two, "second", world.config + "name: second\n")
            for run_id in ("first", "second"):
                drivers = [engine._driving.runner(run_id) is not None for engine in (one, two)]
                assert drivers.count(True) == 1
            # Either tells of any run, whoever drives it.
            assert (await world.done(two, "first")).state is RunState.DONE
            assert (await world.done(one, "second")).state is RunState.DONE
            for run_id in ("first", "second"):
                assert len(await world.rewards(one, run_id)) == 64
            await world.start(one, "third", world.config + "name: third\n")
            await asyncio.sleep(0.3)
            # Asked of the one that does not drive it, the driver hears of it.
            await two.cancel_run("third")
            for _ in range(40):
                if one._driving.runner("third") is None:
                    break
                await asyncio.sleep(0.1)
            assert one._driving.runner("third") is None
        await world.down()

    asyncio.run(asyncio.wait_for(body(), 200))


@contextlib.asynccontextmanager
async def beside_a_stopped_one(
    world: Any, postgres: str, silent_s: float = SILENT_S
) -> AsyncIterator[tuple[Store, Store, Lease]]:
    """The store of an orchestrator that is stopped, another's, and the lease of a run that the first one had."""
    await emptied(world, postgres)
    await world.up()
    async with world.engine() as engine:
        await world.start(engine)
    url = database_url(world.settings())
    stopped, other = await Store.open(url, silent_s=1.0), await Store.open(url, silent_s)
    lease = await stopped.take("run", "stopped", 0.1)
    assert lease is not None
    yield stopped, other, lease
    await stopped.close()
    await other.close()
    await world.down()


def test_a_transaction_that_falls_silent_keeps_no_other_from_taking_over(world: Any, postgres: str) -> None:
    async def body() -> None:
        async with beside_a_stopped_one(world, postgres) as (stopped, other, old):
            # As a process that is stopped in the middle of a write, or whose machine is gone.
            silent = await stopped.engine.connect()
            await stopped.fenced("run", old.epoch)._locked(silent, "run")
            await asyncio.sleep(0.2)
            assert await asyncio.wait_for(other.take("run", "other", 30), 30) is not None
            with pytest.raises(DBAPIError):
                await silent.execute(text("SELECT 1"))
            await silent.invalidate()
            await silent.close()

    asyncio.run(asyncio.wait_for(body(), 150))


def test_transactions_that_queued_behind_a_silent_one_do_not_fall_silent_in_turn(world: Any, postgres: str) -> None:
    """A stopped process has writes that wait for each other: the next would get the lock and hold it as long again."""
    queued = 8

    async def body() -> float:
        async with beside_a_stopped_one(world, postgres) as (stopped, other, old):
            mine = stopped.fenced("run", old.epoch)
            silent = [await stopped.engine.connect() for _ in range(1 + queued)]
            await mine._locked(silent[0], "run")
            waiting = [asyncio.ensure_future(mine._locked(each, "run")) for each in silent[1:]]
            await asyncio.sleep(0.2)
            since = asyncio.get_running_loop().time()
            assert await asyncio.wait_for(other.take("run", "other", 30), 30) is not None
            took_s = asyncio.get_running_loop().time() - since
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(each) for each in ended} == {OperationalError}
            for each in silent:
                await each.invalidate()
                await each.close()
        return took_s

    assert asyncio.run(asyncio.wait_for(body(), 150)) < 0.5 * queued


async def patiently_taken(store: Store) -> Lease | None:
    """As who looks for runs does it: that a lock is not to be had now is no reason to stop looking."""
    while True:
        with contextlib.suppress(StoreFault):
            return await store.take("run", "other", 30)


@pytest.mark.parametrize("told", ["active", "idle in transaction"])
def test_a_pipeline_that_falls_silent_keeps_no_other_from_taking_over(world: Any, postgres: str, told: str) -> None:
    """Before its end it is at work to the server; after it the driver's last request for results stops its timeout."""

    async def body() -> None:
        async with beside_a_stopped_one(world, postgres, silent_s=1.0) as (stopped, other, _):
            # As a process that is stopped while the driver sends many rows, or has just sent them.
            silent = await stopped.engine.connect()
            driver = (await silent.get_raw_connection()).driver_connection
            assert driver is not None
            await driver.execute("SELECT 1")
            driver.pgconn.enter_pipeline_mode()
            driver.pgconn.send_query_params(b"UPDATE runs SET owner = owner WHERE run_id = 'run'", None)
            if told == "idle in transaction":
                driver.pgconn.pipeline_sync()
            driver.pgconn.send_flush_request()
            assert not driver.pgconn.flush()
            await asyncio.sleep(0.3)
            async with other.engine.connect() as connection:
                state = text(f"SELECT state FROM pg_stat_activity WHERE pid = {driver.info.backend_pid}")
                assert await connection.scalar(state) == told
            assert await asyncio.wait_for(patiently_taken(other), 30) is not None
            async with other.engine.connect() as connection:
                assert await connection.scalar(state) is None
            await silent.invalidate()
            await silent.close()

    asyncio.run(asyncio.wait_for(body(), 150))


@pytest.mark.parametrize("slow", ["student", "database"])
def test_a_run_that_waits_keeps_no_other_from_its_renewal(world: Any, slow: str) -> None:
    async def body() -> None:
        await world.up()
        world.a.delay_s = world.b.delay_s = 60
        async with world.engine(run_lease_s=1.5) as engine:
            for run_id in ("slow", "other"):
                await world.start(engine, run_id)
            waits = asyncio.Event()
            renew = engine.store.renew

            async def waiting(*_: Any) -> None:
                waits.set()
                await asyncio.sleep(5)

            async def renewed(lease: Any, seconds: float) -> Any:
                if lease.run_id == "slow":
                    await waiting()
                return await renew(lease, seconds)

            if slow == "student":
                engine._driving.runner("slow").cancel_evaluations = waiting
                await engine.store.end_run("slow", RunState.CANCELLED, "")
            else:
                engine.store.renew = renewed
            await asyncio.wait_for(waits.wait(), 20)
            since = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() < since + 4:
                assert "other" not in [run_id for run_id, _ in await engine.store.free_runs()]
                await asyncio.sleep(0.1)
            engine.store.renew = renew
            assert engine._driving.runner("other") is not None
            if slow == "student":
                while engine._driving.runner("slow") is not None:  # noqa: ASYNC110 - it tells no event
                    await asyncio.sleep(0.1)
        await world.down()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_only_a_process_of_this_machine_is_known_to_be_dead() -> None:
    code = "from orchestrator.owner import this_owner; print(this_owner(), flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    owner = process.stdout.readline().strip()
    assert owner != this_owner() != this_owner()
    assert not is_dead(owner)
    assert not is_dead(this_owner())
    process.kill()
    process.wait()
    assert is_dead(owner)
    place, pid, started, name = owner.split(":")
    # The number is in use again, by somebody who started later.
    assert is_dead(f"{place}:{os.getpid()}:{started}:{name}")
    assert not is_dead(f"elsewhere:{pid}:{started}:{name}")
    assert not is_dead(f"{place}:{pid}:?:{name}")
    assert not is_dead("")


def test_a_run_that_cannot_be_read_does_not_keep_the_others_from_going_on(world: Any) -> None:
    async def body() -> None:
        await world.up()
        world.a.delay_s = world.b.delay_s = 0.1
        async with world.engine() as engine:
            await world.start(engine, "broken")
            await world.start(engine, "good", world.config + "name: good\n")
            c = runs.c
            async with engine.store.engine.begin() as connection:
                await connection.execute(update(runs).where(c.run_id == "broken").values(resolved_yaml="students: 7"))
        async with world.engine() as engine:
            assert (await world.done(engine, "good")).state is RunState.DONE
        await world.down()

    asyncio.run(asyncio.wait_for(body(), 150))
