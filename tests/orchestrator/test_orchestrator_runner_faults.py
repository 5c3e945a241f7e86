"""Whole runs whose orchestrator, student or teacher falls away: no reward is lost, doubled or made up."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from tests.orchestrator.world import in_world
from tutelage.domain.evaluation import Failure
from tutelage.domain.run import RunState
from tutelage.domain.self_edit import Rejection, RejectionReason


async def undisturbed(world: Any) -> tuple[dict[Any, Any], list[Any], dict[str, str]]:
    async with world.engine() as engine:
        await world.start(engine)
        assert (await world.done(engine)).state is RunState.DONE
        versions = {each.name: each.current_adapter_version for each in await engine.list_students()}
        return await world.rewards(engine), [update.groups for update in world.teacher.updates], versions


def test_stopped_again_and_again_it_ends_where_it_would_have_ended(world: Any, tmp_path: Any) -> None:
    calm = type(world)(f"sqlite:///{tmp_path / 'calm.sqlite'}")
    expected = in_world(calm, lambda: undisturbed(calm))

    async def body() -> None:
        world.a.delay_s = world.b.delay_s = 0.02
        stops = 0
        async with world.engine() as engine:
            await world.start(engine)
            await asyncio.sleep(0.15)
        while True:
            async with world.engine() as engine:
                if (await engine.summary("run")).state is not RunState.RUNNING:
                    break
                stops += 1
                await asyncio.sleep(0.1 + 0.05 * stops)
        assert stops >= 2
        async with world.engine() as engine:
            summary = await world.done(engine)
            assert summary.state is RunState.DONE, summary.message
            versions = {each.name: each.current_adapter_version for each in await engine.list_students()}
            assert await world.rewards(engine) == expected[0]
            assert versions == expected[2]
        for student in (world.a, world.b):
            assert len(set(student.trained)) == len(student.trained)
        groups = {update.round: update.groups for update in world.teacher.updates}
        assert [groups[1], groups[2]] == expected[1]

    in_world(world, body)


def test_a_student_that_dies_and_returns_costs_no_reward(world: Any, tmp_path: Any) -> None:
    calm = type(world)(f"sqlite:///{tmp_path / 'calm.sqlite'}")
    expected = in_world(calm, lambda: undisturbed(calm))

    async def body() -> None:
        world.b.delay_s = 0.05
        async with world.engine() as engine:
            await world.start(engine)
            await asyncio.sleep(0.3)
            await world.b.down()
            assert not next(each for each in await engine.list_students() if each.name == "b").reachable
            await asyncio.sleep(0.4)
            await world.b.up()
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 0)
            assert await world.rewards(engine) == expected[0]
            kinds = [event.kind for event in await engine.store.events("run")]
            assert "evaluation_retry" in kinds

    in_world(world, body)


def test_a_student_that_never_returns_leaves_its_candidates_unscored(world: Any) -> None:
    async def body() -> None:
        async with world.engine(retry={"initial_s": 0.01, "maximum_s": 0.02}) as engine:
            world.b.delay_s = 0.05
            config = world.config.replace("rounds: 2", "rounds: 1").replace("attempts: 6", "attempts: 6, total_s: 1")
            await world.start(engine, config=config)
            await asyncio.sleep(0.1)
            await world.b.down()
            summary = await world.done(engine)
            assert summary.state is RunState.DONE
            assert summary.unscored > 0
            failed = [row for row in await engine.store.evaluations("run") if row.state == "failed"]
            # While nobody answers no attempts are spent; the time is what ends it.
            assert failed
            assert all(row.reward is None and row.attempts < 6 and " 1 s" in row.reason for row in failed)
            told = [candidate.reward for update in world.teacher.updates for candidate in update.groups[1].candidates]
            assert None in told
            not_kept = [row for row in await engine.store.commits("run") if row["student"] == "b"]
            assert not_kept
            assert not any(row["committed"] for row in not_kept)

    in_world(world, body)


def test_faults_earn_nothing_and_rejections_what_the_run_says(world: Any) -> None:
    def outcome(key: Any) -> Any:
        text = key.self_edit.documents[0].text
        if text.endswith("number 0"):
            return Failure("out of disk", retryable=False)
        if text.endswith("number 1"):
            return Rejection(RejectionReason.OUT_OF_BOUNDS, "directives.rank", "999", "1 to 128")
        return None

    async def body() -> None:
        world.a.outcome = world.b.outcome = outcome
        config = (
            "students: [a]\ncandidates: 4\nrounds: 1\nreward: {grader_weights: {contains: 1}, rejected_reward: -0.5}\n"
        )
        async with world.engine() as engine:
            await world.start(engine, config=config)
            summary = await world.done(engine)
            assert summary.state is RunState.DONE, summary.message
            rewards = [candidate.reward for candidate in world.teacher.updates[0].groups[0].candidates]
            assert rewards == [None, -0.5, -0.5, -0.5]
            assert not any(row["committed"] for row in await engine.store.commits("run"))
            assert (summary.unscored, summary.rejected) == (2, 6)

    in_world(world, body)


def test_weights_that_are_no_longer_held_are_trained_again(world: Any) -> None:
    async def body() -> None:
        config = "students: [a]\ncandidates: 2\nrounds: 1\nreward: {grader_weights: {contains: 1}}\n"
        async with world.engine() as engine:

            async def forget() -> None:
                while not world.teacher.updates:
                    world.a.held.clear()
                    await asyncio.sleep(0)
                world.a.held.clear()

            forgetting = asyncio.create_task(forget())
            await world.start(engine, config=config)
            assert (await world.done(engine)).state is RunState.DONE
            await forgetting
            commits = await engine.store.commits("run")
            again = [row for row in await engine.store.evaluations("run") if row.phase == "commit"]
            assert again
            assert [row["committed"] or "gain" in row["reason"] for row in commits] == [True, True]

    in_world(world, body)


def test_a_teacher_that_is_away_is_waited_for(world: Any) -> None:
    async def body() -> None:
        async with world.engine() as engine:
            world.a.delay_s = 0.1
            await world.start(engine)
            await asyncio.sleep(0.3)
            await world.teacher.down()
            await asyncio.sleep(2.0)
            await world.teacher.up()
            assert (await world.done(engine)).state is RunState.DONE

    in_world(world, body)


def test_a_student_that_went_away_is_told_in_the_summary_and_the_log(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def body() -> None:
        async with world.engine(dispatch={"set_aside_after": 1, "report_s": 0.2}) as engine:
            await world.start(engine)
            await world.b.down()

            async def told(message: str) -> None:
                while (await engine.summary("run")).message != message:  # noqa: ASYNC110 - the student is a server
                    await asyncio.sleep(0.05)

            await asyncio.wait_for(told("student 'b' did not answer when last asked"), 20)
            await world.b.up()
            assert (await world.done(engine)).message == ""

    in_world(world, body)
    lines = [record.getMessage() for record in caplog.records if record.name == "orchestrator.students"]
    # With the reason, such as a token that was refused: at its level of detail the log has no other line of it.
    away, back = lines
    where = world.b.address
    assert away.startswith(f"student b at {where} does not answer: {where}: ")
    assert back == "student b answers again"
