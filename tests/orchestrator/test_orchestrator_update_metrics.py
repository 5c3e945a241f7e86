"""How an update goes and what its trainer logged, from the teacher's stream to watchers, the store and reports."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from orchestrator import teaching
from orchestrator.report_builder import build_report
from orchestrator.service import RENDERERS
from tests.orchestrator.world import in_world
from tutelage.domain.description import UpdateProgress
from tutelage.domain.run import ReportFormat, RunState

CONFIG = """
students: [a]
candidates: 2
rounds: 2
reward: {grader_weights: {contains: 1}}
commit: {when: never}
"""
METRICS = {"loss": 0.25, "kl": 0.125, "clip_ratio/high_mean": 0.5}


async def updated(world: Any, engine: Any) -> tuple[list[Any], list[dict[str, Any]]]:
    """The events of a run, and the lines of its metrics about updates."""
    await world.start(engine, config=CONFIG)
    summary = await world.done(engine)
    assert summary.state is RunState.DONE, summary.message
    report = await build_report(engine.store, await engine.store.run("run"), summary)
    lines = map(json.loads, RENDERERS[ReportFormat.METRICS](report))
    return await engine.store.events("run"), [line for line in lines if line["type"] == "update"]


def test_what_the_trainer_logged_is_told_stored_and_reported(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teaching, "PROGRESS_S", 0.0)
    world.teacher.progress = (UpdateProgress(), UpdateProgress(1, 2, 0.5), UpdateProgress(2, 2, math.nan))
    world.teacher.logged = {"metrics": METRICS, "first_loss": 0.5, "last_loss": None, "peak_memory_bytes": 7}

    async def body() -> None:
        async with world.engine() as engine:
            events, (first, second) = await updated(world, engine)
            told = [event.detail for event in events if event.kind == "update_progress"]
            assert told[:2] == [
                {"round": 1, "step": 1, "steps": 2, "loss": 0.5},
                {"round": 1, "step": 2, "steps": 2, "loss": None},
            ]
            assert [detail["round"] for detail in told] == [1, 1, 2, 2]
            ended = next(event.detail for event in events if event.kind == "policy_updated")
            assert (ended["loss"], ended["kl"]) == (0.25, 0.125)
            assert "entropy" not in ended
            stored = (await engine.store.updates("run"))[0].result
            assert (stored.metrics, stored.first_loss, stored.last_loss) == (METRICS, 0.5, None)
            assert first["metrics"] == second["metrics"] == METRICS
            assert (first["first_loss"], first["last_loss"], first["peak_memory_bytes"]) == (0.5, None, 7)

    in_world(world, body)


def test_progress_is_told_now_and_then(world: Any) -> None:
    world.teacher.progress = tuple(UpdateProgress(step, 40, 1.0) for step in range(40))

    async def body() -> None:
        async with world.engine() as engine:
            events, lines = await updated(world, engine)
            assert [event.detail["step"] for event in events if event.kind == "update_progress"] == [1, 1]
            # A teacher that logs nothing.
            assert [line["metrics"] for line in lines] == [{}, {}]

    in_world(world, body)
