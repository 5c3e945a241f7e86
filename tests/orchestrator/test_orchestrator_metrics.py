"""What /metrics says of runs, also of those that another orchestrator has changed, and of their database."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from orchestrator import metrics
from orchestrator.database import database_url
from orchestrator.store import Store
from tests.orchestrator.test_orchestrator_store_faults import full
from tests.orchestrator.world import in_world
from tutelage.domain.errors import Unavailable
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


def test_a_database_that_takes_no_transaction_is_counted_as_long_as_a_run_waits_for_it(world: Any) -> None:
    def faults() -> float:
        return float(metrics.STORE_FAULTS._value.get())

    async def body() -> None:
        world.a.delay_s = world.b.delay_s = 0.1
        async with world.engine(run_lease_s=0.6) as engine:
            await world.start(engine)
            before = faults()
            async with full(world, engine):
                with pytest.raises(Unavailable):
                    await engine.store.append("run", ("told", {"much": "x" * 100_000}))
                await world.until(lambda: engine._driving.runner("run") is None)
                # What reads only still answers: health says nothing of it.
                assert await engine.ready()
                async with asyncio.timeout(10):
                    await world.until(lambda: faults() > before + 5)
            assert (await world.done(engine)).state is RunState.DONE
            ended = faults()
            await asyncio.sleep(1)
            assert faults() == ended

    in_world(world, body)


def test_what_no_round_has_told_yet_is_no_number() -> None:
    """A mean reward of 0 would be one."""
    code = "import prometheus_client, orchestrator.metrics; print(prometheus_client.generate_latest().decode())"
    page = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "tutelage_orchestrator_round_mean_reward NaN" in page
    assert "tutelage_orchestrator_policy_round NaN" in page
