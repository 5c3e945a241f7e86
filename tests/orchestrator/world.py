"""A world of a teacher and two students over real gRPC, and engines between them on one database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from orchestrator.config import OrchestratorSettings
from orchestrator.engine import Engine
from tests.orchestrator.fake_services import FakeStudent, FakeTeacher
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task


class World:
    """One teacher, students a and b, and engines on one database."""

    config = """
students: [a, b]
candidates: 4
rounds: 2
seed: 7
evaluation_seeds: 2
reward: {grader_weights: {contains: 1.0}}
deadlines: {evaluation_s: 20, attempts: 6}
"""
    tasks = tuple(
        TaskWithQuiz(
            Task(name, DocumentTask(f"Title {name}", f"Text of {name}")),
            Quiz((Question("q1", "What?", "That"), Question("q2", "Who?", "She"))),
        )
        for name in ("t1", "t2")
    )

    def __init__(self, url: str) -> None:
        self.url = url
        # What a fake leaves out is answered with UNIMPLEMENTED; only the stubs call it abstract.
        self.teacher = FakeTeacher()  # type: ignore[abstract]
        self.a, self.b = FakeStudent(slots=2), FakeStudent(slots=1)  # type: ignore[abstract]

    async def up(self) -> None:
        for each in (self.teacher, self.a, self.b):
            await each.up()

    async def down(self) -> None:
        for each in (self.teacher, self.a, self.b):
            await each.down()

    def settings(self, **changes: Any) -> OrchestratorSettings:
        values: dict[str, Any] = {
            "database_url": self.url,
            "teacher": {"address": f"127.0.0.1:{self.teacher.port}"},
            "students": {"a": {"address": self.a.address}, "b": {"address": self.b.address}},
            "retry": {"initial_s": 0.05, "maximum_s": 0.5},
            "describe_timeout_s": 2,
        }
        return OrchestratorSettings(**(values | changes))

    @contextlib.asynccontextmanager
    async def engine(self, **changes: Any) -> AsyncIterator[Engine]:
        engine = Engine(self.settings(**changes))
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()

    @staticmethod
    async def until(condition: Callable[[], bool]) -> None:
        """Returns when the condition holds."""
        while not condition():  # noqa: ASYNC110 - what is waited for is in a server or another process
            await asyncio.sleep(0.02)

    async def start(self, engine: Engine, run_id: str = "run", config: str | None = None) -> None:
        await engine.start_run(run_id, config or self.config, self.tasks, Quiz())

    async def rewards(self, engine: Engine, run_id: str = "run") -> dict[tuple[str, str, int], float | None]:
        """Every reward of the run by candidate, student and repeat; fails when one is there twice."""
        stored = {
            (row.student, row.evaluation_id): row.reward for row in await engine.store.evaluations(run_id) if row.final
        }
        rows = await engine.store.reward_rows(run_id)
        given = {row[:3]: stored.get((row[1], row[3])) for row in rows}
        assert len(given) == len(rows)
        return given

    async def done(self, engine: Engine, run_id: str = "run", timeout_s: float = 150) -> Any:
        """The summary after the run has ended."""

        async def last() -> Any:
            return [summary async for summary, _ in engine.watch(run_id, 0)][-1]

        return await asyncio.wait_for(last(), timeout_s)


def in_world(world: Any, body: Any) -> Any:
    """What the body returns, run while the world is up."""

    async def whole() -> Any:
        await world.up()
        try:
            return await body()
        finally:
            await world.down()

    return asyncio.run(asyncio.wait_for(whole(), 200))
