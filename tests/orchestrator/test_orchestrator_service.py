"""The orchestrator as its clients meet it: over its own server, with the client library."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service import OrchestratorService
from tutelage.client import OrchestratorClient
from tutelage.domain.errors import Conflict, InvalidInput, NotFound, PreconditionFailed
from tutelage.domain.run import ReportFormat, RunState
from tutelage.domain.task import Quiz
from tutelage.rpc.config import ChannelSettings
from tutelage.rpc.server import serve


def test_a_client_starts_watches_and_reads_a_run(world: Any, tmp_path: Path) -> None:
    async def body() -> None:
        await world.up()
        ready = tmp_path / "ready.json"
        settings = world.settings(server={"ready_file": str(ready), "grace_s": 1})
        stop = asyncio.Event()
        server = asyncio.create_task(serve(OrchestratorService(settings), settings.server, stop=stop))
        while not ready.exists():
            await asyncio.sleep(0.05)
            assert not server.done(), server.exception()
        address = json.loads(ready.read_text())["address"]
        async with OrchestratorClient(ChannelSettings(address=address)) as client:
            with pytest.raises(InvalidInput) as caught:
                await client.start_run("run", "students: [zoe]", world.tasks, Quiz())
            assert caught.value.violations[0].field == "config.students[0]"
            summary, created = await client.start_run("run", world.config, world.tasks, Quiz())
            assert (summary.state, created) == (RunState.RUNNING, True)
            seen = [item async for item in client.watch_run("run", 5)]
            assert seen[-1][0].state is RunState.DONE
            events = [event for _, event in seen if event]
            assert [event.sequence for event in events] == list(range(6, 6 + len(events)))
            assert (await client.get_run("run"))[1] == world.config
            assert [run.run_id for run in await client.list_runs()] == ["run"]
            html = await client.get_report("run", ReportFormat.HTML)
            assert html.startswith(b"<!")
            assert json.loads(await client.get_report("run", ReportFormat.JSON))
            lines = (await client.get_report("run", ReportFormat.METRICS)).decode().splitlines()
            assert all(json.loads(line) for line in lines)
            students = await client.list_students()
            assert all(student.reachable for student in students)
            with pytest.raises(Conflict):
                await client.set_current_adapter("a", "", "")
            with pytest.raises(NotFound):
                await client.get_run("nothing")
            assert (await client.cancel_run("run")).state is RunState.DONE
            summary, _ = await client.get_run("run")
            assert [(each.name, each.evaluations_done) for each in summary.students] == [("a", 32), ("b", 32)]
            assert all(each.mean_reward is not None and 0 < (each.busy or 0) <= 1 for each in summary.students)
            assert 0 < (summary.teacher_busy or 0) <= 1
            plan = await client.plan_run("next", world.config, world.tasks, Quiz())
            assert (plan.groups, plan.evaluations, plan.updates) == (4, 64, 2)
            assert plan.seconds is not None
            assert plan.resolved_yaml == await client.resolved_yaml("run")
            assert (await client.extend_run("run", 1)).rounds == 3
            assert [item async for item in client.watch_run("run")][-1][0].state is RunState.DONE
            copy, created = await client.clone_run("run", "copy", "candidates: 2\n")
            assert (copy.run_id, created, copy.evaluations_total) == ("copy", True, 32)
            assert (await client.pause_run("copy")).state is RunState.PAUSED
            assert (await client.resume_run("copy")).state is RunState.RUNNING
            assert [item async for item in client.watch_run("copy")][-1][0].state is RunState.DONE
            with pytest.raises(PreconditionFailed):
                await client.pause_run("copy")
        stop.set()
        await server
        await world.down()

    asyncio.run(asyncio.wait_for(body(), 150))
