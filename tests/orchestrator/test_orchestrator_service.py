"""The orchestrator as its clients meet it: over its own server, with the client library."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.service import OrchestratorService
from tutelage.client import OrchestratorClient
from tutelage.domain.errors import Conflict, InvalidInput, NotFound
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
        stop.set()
        await server
        await world.down()

    asyncio.run(asyncio.wait_for(body(), 60))
