"""A teacher that breaks is asked again; a run that failed for it goes on where it stood when it is resumed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tutelage.domain.errors import PreconditionFailed, TutelageError
from tutelage.domain.run import RunState

CONFIG = """
students: [a]
candidates: 2
rounds: 2
reward: {grader_weights: {contains: 1}}
commit: {when: never}
"""
QUICK = {"initial_s": 0.01, "maximum_s": 0.02}


def breaking(world: Any, times: int) -> list[int]:
    """The teacher breaks so often on each update; how often it may break still."""
    plain, left = world.teacher.UpdatePolicy, [times]

    async def update(requests: Any, context: Any) -> AsyncIterator[Any]:
        if left[0] > 0:
            left[0] -= 1
            async for _ in requests:
                pass
            raise TutelageError("the update's process was killed")
        async for event in plain(requests, context):
            yield event

    world.teacher.UpdatePolicy = update
    return left


def in_world(world: Any, body: Any) -> None:
    async def whole() -> None:
        await world.up()
        try:
            await body()
        finally:
            await world.down()

    asyncio.run(asyncio.wait_for(whole(), 100))


def test_a_teacher_that_breaks_now_and_then_fails_no_run(world: Any) -> None:
    breaking(world, 2)

    async def body() -> None:
        async with world.engine(retry=QUICK) as engine:
            await world.start(engine, config=CONFIG)
            assert (await world.done(engine)).state is RunState.DONE
            retried = [event for event in await engine.store.events("run") if event.kind == "teacher_retry"]
            assert len(retried) == 2
            assert all("was killed" in str(event.detail["reason"]) for event in retried)

    in_world(world, body)


def test_a_run_that_failed_is_resumed_with_all_its_rewards(world: Any) -> None:
    left = breaking(world, 1000)

    async def body() -> None:
        async with world.engine(retry=QUICK) as engine:
            await world.start(engine, config=CONFIG)
            summary = await world.done(engine)
            assert (summary.state, left[0]) == (RunState.FAILED, 996)
            assert "was killed" in summary.message
            before, trained = await world.rewards(engine), list(world.a.trained)
            with pytest.raises(PreconditionFailed, match="resumed or cloned"):
                await engine.extend_run("run", 1)
            left[0] = 0
            assert (await engine.resume_run("run")).finished_at is None
            summary = await world.done(engine)
            assert (summary.state, summary.message) == (RunState.DONE, "")
            after = await world.rewards(engine)
            assert before.items() <= after.items()
            assert world.a.trained[: len(trained)] == trained
            assert len(set(world.a.trained)) == len(world.a.trained)
            with pytest.raises(PreconditionFailed, match="done"):
                await engine.resume_run("run")

    in_world(world, body)
