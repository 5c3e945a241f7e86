"""What is taken up again: evaluations over a restart, commits over added rounds, and runs that were paused."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import update

from orchestrator import schema
from tutelage.domain.canonical import derived_seed
from tutelage.domain.errors import PreconditionFailed
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
            summary = await world.done(engine, timeout_s=30)
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
