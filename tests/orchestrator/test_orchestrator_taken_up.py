"""What is taken up again: evaluations over a restart, commits over added rounds, and runs that were paused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import update

from orchestrator import schema
from tutelage.domain.canonical import derived_seed
from tutelage.domain.errors import PreconditionFailed, Unavailable
from tutelage.domain.evaluation import Failure
from tutelage.domain.run import RunState
from tutelage.domain.task import Quiz


def in_world(world: Any, body: Any) -> None:
    async def whole() -> None:
        await world.up()
        try:
            await body()
        finally:
            await world.down()

    asyncio.run(asyncio.wait_for(whole(), 100))


def test_the_total_deadline_of_an_evaluation_goes_on_over_a_restart(world: Any) -> None:
    config = (
        "students: [a]\ncandidates: 1\nrounds: 1\nreward: {grader_weights: {contains: 1}}\ncommit: {when: never}\n"
        "deadlines: {evaluation_s: 0.5, total_s: 60, attempts: 1000}\n"
    )

    async def body() -> None:
        world.a.delay_s = 1000
        async with world.engine() as engine:
            await world.start(engine, config=config)
            await world.until(lambda: world.a.running == 2)
            await asyncio.sleep(0.3)
            hour_us = 3_600_000_000
            async with engine.store.engine.begin() as connection:
                earlier = {"started_at": schema.evaluations.c.started_at - hour_us}
                await connection.execute(update(schema.evaluations).values(earlier))
        async with world.engine() as engine:
            # What is left of it is the time of one attempt.
            summary = await world.done(engine, timeout_s=90)
            assert (summary.state, summary.unscored) == (RunState.DONE, 2)
            rows = await engine.store.evaluations("run")
            assert all("not done in 60 s" in row.reason for row in rows)
            assert all(3600 < row.seconds < 3700 for row in rows)

    in_world(world, body)


def test_added_rounds_train_again_for_a_commit_whose_weights_were_lost(world: Any) -> None:
    plain, lost = world.a.Commit, [True]

    async def commit(request: Any, context: Any) -> Any:
        if lost[0]:
            raise PreconditionFailed("its weights are no longer held")
        return await plain(request, context)

    world.a.Commit = commit
    config = "students: [a]\ncandidates: 1\nrounds: 1\nreward: {grader_weights: {contains: 1}}\nupdate: {when: never}\n"

    async def body() -> None:
        async with world.engine() as engine:
            await engine.start_run("run", config, world.tasks[:1], Quiz())
            assert (await world.done(engine)).state is RunState.DONE
            (row,) = await engine.store.commits("run")
            assert (row["committed"], row["fault"]) == (False, True)
            assert len(world.a.trained) == 1 + 2
            world.a.held.clear()
            # The added round earns nothing, so that the commit is of the first round's edit.
            second = derived_seed(0, "t1", 2, 0)
            world.a.outcome = lambda key: Failure("broken", False) if key.seed == second else None
            lost[0] = False
            await engine.extend_run("run", 1)
            assert (await world.done(engine)).state is RunState.DONE
            (row,) = await engine.store.commits("run")
            assert row["committed"], row["reason"]
            assert len(world.a.trained) == 1 + 2 + 1

    in_world(world, body)


@pytest.mark.parametrize("away", ["teacher", "student at its commit", "student to train again"])
def test_a_run_is_paused_also_while_it_waits_for_somebody_who_is_away(world: Any, away: str) -> None:
    plain, asked, back = world.a.Commit, asyncio.Event(), asyncio.Event()

    async def commit(request: Any, context: Any) -> Any:
        asked.set()
        if away == "student at its commit" and not back.is_set():
            raise Unavailable("away")
        if away == "student to train again" and not back.is_set():
            world.a.delay_s = 1000
            raise PreconditionFailed("its weights are no longer held")
        return await plain(request, context)

    world.a.Commit = commit
    config = "students: [a]\ncandidates: 1\nrounds: 1\nreward: {grader_weights: {contains: 1}}\nupdate: {when: never}\n"

    async def body() -> None:
        if away == "teacher":
            world.a.delay_s = 0.5
        async with world.engine() as engine:
            await world.start(engine, config=config.replace("rounds: 1", "rounds: 2"))
            if away == "teacher":
                await world.until(lambda: world.a.running > 0)
                await world.teacher.down()
                await world.until(lambda: len(world.a.trained) == 2)
            else:
                await asked.wait()
                if away == "student to train again":
                    await world.until(lambda: world.a.running == 1)
                    await world.a.down()
            await asyncio.sleep(0.5)
            await engine.pause_run("run")
            async with asyncio.timeout(10):
                await world.until(lambda: engine._driving.runner("run") is None)
            back.set()
            world.a.delay_s = 0.0
            if away != "student at its commit":
                await (world.teacher if away == "teacher" else world.a).up()
            await engine.resume_run("run")
            assert (await world.done(engine)).state is RunState.DONE
            assert all(row["committed"] or "gain" in row["reason"] for row in await engine.store.commits("run"))

    in_world(world, body)
