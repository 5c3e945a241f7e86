"""Answers and commits hold no thread while they wait: all else is answered meanwhile, and one too many is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import student.service as service_module
from tests.rpc.example_service import KEY
from tests.student.served_student import PATIENCE_S, Served, held, served
from tutelage.domain.errors import Exhausted, NotFound, PreconditionFailed
from tutelage.domain.evaluation import Answer
from tutelage.domain.task import Question
from tutelage.wire.evaluation import evaluation_key_from_wire

QUICK_S = 2.0
"""Seconds in which a call that waits for nobody is answered, also on a busy machine."""
QUESTIONS = [Question("q", "Who?", "")]


async def until_waiting(student: Served, count: int) -> None:
    """Returns when so many calls whose callers are still there wait for the worker; or too late, where they do not."""
    begun = time.monotonic()
    while time.monotonic() < begun + 2 * QUICK_S:
        waiting = [future for _, future in list(student.engine._scheduler._calls) if not future.cancelled()]
        if len(waiting) == count:
            return
        await asyncio.sleep(0.02)


async def all_else(tiny_path: Path, folder: Path) -> None:
    async with (
        served(tiny_path, folder) as student,
        student.client() as client,
        grpc.aio.insecure_channel(student.address) as channel,
        held(student.engine) as gate,
    ):
        calls = [client.answer(QUESTIONS, adapter_version="") for _ in range(30)]
        tasks = [asyncio.create_task(call) for call in [*calls, *(client.commit("f" * 64) for _ in range(10))]]
        await until_waiting(student, 40)
        for call in (client.get_evaluation, client.cancel_evaluation):
            with pytest.raises(NotFound):
                await call("f" * 64, timeout_s=QUICK_S)
        assert await client.list_adapters(timeout_s=QUICK_S) == ()
        assert await asyncio.wait_for(asyncio.to_thread(student.engine.healthy), QUICK_S)
        request = health_pb2.HealthCheckRequest(service="tutelage.v1.StudentService")
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health = await stub.Check(request, timeout=QUICK_S)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        assert not any(task.done() for task in tasks)
        gate.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE_S)
        assert all(isinstance(answers, tuple) and len(answers) == 1 for answers in results[:30]), results[:30]
        assert all(isinstance(error, NotFound) for error in results[30:])


def test_while_many_answers_and_commits_wait_all_else_is_answered(tiny_path: Path, tmp_path: Path) -> None:
    asyncio.run(all_else(tiny_path, tmp_path))


async def read_aside(tiny_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, entered = threading.Event(), threading.Event()

    def slowly(message: Any) -> Any:
        entered.set()
        gate.wait(2 * QUICK_S)
        return evaluation_key_from_wire(message)

    monkeypatch.setattr(service_module, "evaluation_key_from_wire", slowly)
    async with served(tiny_path, folder) as student, student.client() as client:
        key = dataclasses.replace(KEY, base_model=(await client.describe()).base_model)
        stream = client.evaluate(key)
        begun = time.monotonic()
        asking = asyncio.ensure_future(anext(stream))
        assert await asyncio.to_thread(entered.wait, PATIENCE_S)
        await client.describe(timeout_s=QUICK_S)
        assert time.monotonic() < begun + QUICK_S
        gate.set()
        with pytest.raises(PreconditionFailed):
            await asking


def test_while_a_large_evaluation_is_read_all_else_is_answered(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(read_aside(tiny_path, tmp_path, monkeypatch))


async def one_too_many(tiny_path: Path, folder: Path) -> None:
    async with served(tiny_path, folder) as student, student.client() as client, held(student.engine) as gate:
        most = student.engine.settings.max_queue

        def ask() -> asyncio.Task[tuple[Answer, ...]]:
            return asyncio.create_task(client.answer(QUESTIONS, adapter_version=""))

        tasks = [ask() for _ in range(most)]
        await until_waiting(student, most)
        with pytest.raises(Exhausted, match=f"{most} calls wait already"):
            await client.answer(QUESTIONS, adapter_version="", timeout_s=QUICK_S)
        # Who leaves makes room.
        tasks.pop().cancel()
        await until_waiting(student, most - 1)
        tasks.append(ask())
        await until_waiting(student, most)
        gate.set()
        results = await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_S)
        assert [len(answers) for answers in results] == [1] * most


def test_at_the_defaults_one_call_too_many_is_refused_at_once(tiny_path: Path, tmp_path: Path) -> None:
    asyncio.run(one_too_many(tiny_path, tmp_path))
