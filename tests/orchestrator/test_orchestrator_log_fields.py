"""Two runs on the same students: each line about an evaluation carries the run that it is of, and its id."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from tutelage.domain.errors import Unavailable
from tutelage.domain.run import RunState
from tutelage.rpc.logging import JsonFormatter


def test_each_line_names_the_run_and_the_evaluation_it_is_about(world: Any) -> None:
    lines: list[dict[str, str]] = []
    tried: set[str] = set()

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    def first_lost(key: Any) -> Any:
        if key.id in tried:
            return None
        tried.add(key.id)
        return Unavailable("gone for a moment")

    async def body() -> dict[str, set[str]]:
        await world.up()
        world.a.outcome = world.b.outcome = first_lost
        owned = {}
        try:
            async with world.engine(dispatch={"retry_budget": 100}) as engine:
                # Other seeds, so that no evaluation is of both.
                for number in (1, 2):
                    await world.start(engine, f"run-{number}", world.config.replace("seed: 7", f"seed: {number}"))
                for number in (1, 2):
                    assert (await world.done(engine, f"run-{number}")).state is RunState.DONE
                    stored = await engine.store.evaluations(f"run-{number}")
                    owned[f"run-{number}"] = {row.evaluation_id for row in stored}
        finally:
            await world.down()
        return owned

    handler = Keeping()
    logging.getLogger("orchestrator").addHandler(handler)
    try:
        owned = asyncio.run(asyncio.wait_for(body(), 200))
    finally:
        logging.getLogger("orchestrator").removeHandler(handler)
    assert not owned["run-1"] & owned["run-2"]
    again = [line for line in lines if "again in" in line["message"]]
    for run in owned:
        assert len([line for line in again if line["run_id"] == run]) > 10
    assert all(line["evaluation_id"] in owned[line["run_id"]] for line in again)
    # What is asked for nobody's run carries none.
    assert not [line for line in lines if line["message"].startswith("student a at") and "run_id" in line]
