"""A student served on loopback in the test's own process, so that the test can look into its engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from student.config import StudentSettings
from student.engine import StudentEngine
from student.metrics import StudentMetrics
from student.service import Student
from tutelage.client import StudentClient
from tutelage.rpc.config import ChannelSettings, ServerSettings
from tutelage.rpc.server import serve

PATIENCE_S = 300
"""Seconds anything may take on a machine that is busy with other work."""


@dataclass(frozen=True)
class Served:
    """A student that listens on loopback in this process."""

    address: str
    engine: StudentEngine
    registry: CollectorRegistry

    def client(self) -> StudentClient:
        return StudentClient(ChannelSettings(address=self.address))

    @property
    def room_steps(self) -> int:
        return int(self.registry.get_sample_value("tutelage_student_step_seconds_count") or 0)


@asynccontextmanager
async def served(tiny_path: Path, folder: Path, **settings: object) -> AsyncIterator[Served]:
    """A bfloat16 NF4 student."""
    registry, ready, stop = CollectorRegistry(), folder / "ready.json", asyncio.Event()
    given = StudentSettings.model_validate(
        {
            "model": str(tiny_path),
            "device": "cpu",
            "compute_dtype": "bfloat16",
            "threads": 1,
            "data_dir": folder / "data",
            "max_new_tokens": 6,
            "server": ServerSettings(ready_file=ready, grace_s=5),
            **settings,
        }
    )
    service = Student(given, StudentMetrics(registry))
    serving = asyncio.create_task(serve(service, given.server, stop=stop))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not ready.exists() and not serving.done():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        if serving.done():
            serving.result()
        engine = service._servicer.engine_or_none
        assert engine is not None
        yield Served(json.loads(ready.read_text())["address"], engine, registry)
    finally:
        stop.set()
        await serving


@asynccontextmanager
async def held(engine: StudentEngine) -> AsyncIterator[threading.Event]:
    """Within the block, until the event is set, the worker is busy with a call and does nothing else."""
    gate, entered = threading.Event(), threading.Event()

    def wait() -> None:
        entered.set()
        gate.wait(PATIENCE_S)

    engine._scheduler.call(wait)
    assert await asyncio.to_thread(entered.wait, PATIENCE_S)
    try:
        yield gate
    finally:
        gate.set()
