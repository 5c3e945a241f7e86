"""Judges that are slow: students go on meanwhile, to a bound; a pause and a group with enough do not wait for them."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import handing_out
from tests.orchestrator.fake_services import FakeStudent
from tests.orchestrator.judge_endpoint import Endpoint, settings
from tests.orchestrator.world import in_world
from tutelage.domain.evaluation import EvaluationReport, QuizResult
from tutelage.domain.run import RunState

REWARDED = """
students: [a, b]
candidates: 4
rounds: 1
seed: 7
evaluation_seeds: 4
judges: [gpt]
reward: {grader_weights: {gpt: 1.0}}
update: {when: never}
commit: {when: never}
deadlines: {evaluation_s: 20, attempts: 2}
"""
EACH = 2 * 2 * 4
"""Evaluations of a student: tasks x distinct edits x seeds."""


def trained(world: Any) -> list[int]:
    return [len(student.trained) for student in (world.a, world.b)]


def test_students_go_on_while_a_judge_is_silent(world: Any, endpoint: Endpoint) -> None:
    endpoint.stalls = True

    async def body() -> None:
        async with world.engine(judges={"gpt": settings(endpoint, timeout_s=60).model_dump()}) as engine:
            await world.start(engine, config=REWARDED)
            await asyncio.wait_for(world.until(lambda: trained(world) == [EACH, EACH]), 8)
            assert not any(row.final for row in await engine.store.evaluations("run"))
            endpoint.stall.set()
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 0)

    in_world(world, body)


def test_no_more_wait_for_a_judge_than_may(world: Any, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handing_out, "MOST_ANSWERED", 1)
    endpoint.stalls = True

    async def body() -> None:
        async with world.engine(judges={"gpt": settings(endpoint, timeout_s=60).model_dump()}) as engine:
            await world.start(engine, config=REWARDED)
            await asyncio.wait_for(world.until(lambda: bool(endpoint.prompts)), 8)
            await asyncio.sleep(1)
            # What they were handed before one had answered: two times their slots and two more.
            assert trained(world)[0] <= 6
            assert trained(world)[1] <= 4
            endpoint.stall.set()
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 0)
            assert trained(world) == [EACH, EACH]

    in_world(world, body)


def test_a_run_paused_while_a_judge_is_silent_ends_at_once_and_goes_on(world: Any, endpoint: Endpoint) -> None:
    endpoint.stalls = True

    async def body() -> None:
        judge = settings(endpoint, timeout_s=60).model_dump()
        async with world.engine(judges={"gpt": judge}) as engine:
            await world.start(engine, config=REWARDED)
            await asyncio.wait_for(world.until(lambda: trained(world) == [EACH, EACH]), 8)
            await engine.pause_run("run")
            await asyncio.wait_for(world.until(lambda: engine._driving.runner("run") is None), 5)
        endpoint.stall.set()
        async with world.engine(judges={"gpt": judge}) as engine:
            await engine.resume_run("run")
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 0)
            assert len(await world.rewards(engine)) == 2 * 4 * 2 * 4
            # The students had their reports: nothing was trained twice.
            assert trained(world) == [EACH, EACH]

    in_world(world, body)


def test_a_group_with_enough_does_not_wait_for_a_judge(world: Any, endpoint: Endpoint) -> None:
    def answering(key: Any) -> Any:
        whole = FakeStudent.report(world.a, key)
        if not key.self_edit.documents[0].text.endswith("number 0"):
            return whole
        return replace(whole, after=QuizResult.of(tuple(replace(each, text="hm") for each in whole.after.answers)))

    endpoint.verdict = lambda prompt: (503, "") if '"hm"' in prompt else (200, "yes")
    config = REWARDED.replace("attempts: 2", "attempts: 500").replace("[a, b]", "[a]")

    async def body() -> None:
        world.a.outcome = answering
        async with world.engine(judges={"gpt": settings(endpoint, attempts=1).model_dump()}) as engine:
            await world.start(engine, config=config + "group: {close: minimum, minimum: 2}\n")
            summary = await world.done(engine, timeout_s=60)
            assert (summary.state, summary.unscored) == (RunState.DONE, 2), summary.message
            lost = [row for row in await engine.store.evaluations("run") if row.state == "failed"]
            assert len(lost) == 8
            assert all("not needed" in row.reason and isinstance(row.outcome, EvaluationReport) for row in lost)

    in_world(world, body)


def test_what_a_judge_said_stands_when_another_that_only_informs_is_not_waited_for(
    world: Any, endpoint: Endpoint
) -> None:
    def answering(key: Any) -> Any:
        whole = FakeStudent.report(world.a, key)
        if not key.self_edit.documents[0].text.endswith("number 0"):
            return whole
        return replace(whole, after=QuizResult.of(tuple(replace(each, text="hm") for each in whole.after.answers)))

    silent, ended = Endpoint(), threading.Event()
    endpoint.verdict = lambda prompt: (200, "yes")

    def verdict(prompt: str) -> tuple[int, str]:
        if '"hm"' in prompt:
            ended.wait(60)
        return 200, "yes"

    silent.verdict = verdict
    judges = {
        "gpt": settings(endpoint).model_dump(),
        "info": settings(silent, timeout_s=100, attempts=1, concurrency=64).model_dump(),
    }
    config = REWARDED.replace("judges: [gpt]", "judges: [gpt, info]").replace("[a, b]", "[a]")

    async def body() -> None:
        world.a.outcome = answering
        async with world.engine(judges=judges) as engine:
            await world.start(engine, config=config + "group: {close: minimum, minimum: 2, wait_s: 1}\n")
            summary = await world.done(engine, timeout_s=40)
            assert (summary.state, summary.unscored) == (RunState.DONE, 0), summary.message
            rows = await engine.store.evaluations("run")
            assert {row.state for row in rows} == {"report"}
            scores = [row.outcome.after.scores for row in rows]
            assert all("gpt" in each for each in scores)
            assert sum("info" not in each for each in scores) == 8

    try:
        in_world(world, body)
    finally:
        ended.set()
        silent.close()
