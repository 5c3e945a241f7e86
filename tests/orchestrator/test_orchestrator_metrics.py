"""What /metrics says of runs: also of those that another orchestrator on the database has changed."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator import metrics
from orchestrator.database import database_url
from orchestrator.store import Store
from tests.orchestrator.world import in_world
from tutelage.domain.run import RunState


def counted(state: RunState) -> float:
    return float(metrics.RUNS.labels(state.value)._value.get())


def test_runs_are_counted_by_state_also_when_another_orchestrator_changed_them(world: Any) -> None:
    async def body() -> None:
        async with world.engine(run_lease_s=0.6) as engine:
            await world.start(engine)
            await engine.pause_run("run")
            await world.until(lambda: engine._driving.runner("run") is None)
            # Whatever its end changed is counted.
            await asyncio.sleep(0.5)
            assert (counted(RunState.PAUSED), counted(RunState.CANCELLED)) == (1, 0)
            other = await Store.open(database_url(world.settings()))
            assert await other.end_run("run", RunState.CANCELLED, "cancelled")
            await other.close()
            async with asyncio.timeout(10):
                await world.until(lambda: (counted(RunState.PAUSED), counted(RunState.CANCELLED)) == (0, 1))

    in_world(world, body)
