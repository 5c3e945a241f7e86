"""A fault while a version is being kept is waited out or trained round; it never counts as a student's decision."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator import inbox_worker
from orchestrator.inbox_config import InboxConfig
from orchestrator.inboxes import Inboxes
from tutelage.cli.inbox import outcome_text
from tutelage.domain.errors import DataLoss, TutelageError, Unavailable
from tutelage.domain.inbox import InboxDocumentState
from tutelage.domain.run import RunState
from tutelage.domain.task import Quiz
from tutelage.settings import parse_settings

CONFIG = """
students: [a]
candidates: 2
rounds: 1
reward: {grader_weights: {contains: 1}}
update: {when: never}
deadlines: {attempts: 2, total_s: 30}
"""
QUICK = {"initial_s": 0.01, "maximum_s": 0.02}


def in_world(world: Any, body: Any) -> None:
    async def whole() -> None:
        await world.up()
        try:
            await body()
        finally:
            await world.down()

    asyncio.run(asyncio.wait_for(whole(), 100))


def faulty(student: Any, *faults: Exception | None) -> list[str]:
    """The student's Commit raises each of these in turn, None meaning none, and then works; who was asked for what."""
    plain, left, asked = student.Commit, list(faults), []

    async def commit(request: Any, context: Any) -> Any:
        asked.append(request.evaluation_id)
        fault = left.pop(0) if left else None
        if fault is not None:
            raise fault
        return await plain(request, context)

    student.Commit = commit
    return asked


async def decided(world: Any, engine: Any, config: str = CONFIG) -> list[dict[str, Any]]:
    await engine.start_run("run", config, world.tasks[:1], Quiz())
    assert (await world.done(engine)).state is RunState.DONE
    return list(await engine.store.commits("run"))


def test_a_student_that_is_away_when_it_is_to_keep_a_version_is_waited_for(world: Any) -> None:
    asked = faulty(world.a, *[Unavailable("away")] * 20)

    async def body() -> None:
        async with world.engine(retry=QUICK) as engine:
            (row,) = await decided(world, engine)
            assert row["committed"], row["reason"]
            assert len(asked) == 21
            assert len(set(asked)) == 1

    in_world(world, body)


@pytest.mark.parametrize("fault", [DataLoss("its weights are damaged"), TutelageError("INTERNAL: no more disk")])
def test_damaged_weights_are_trained_again_and_a_broken_call_is_made_again(world: Any, fault: Exception) -> None:
    asked = faulty(world.a, fault)

    async def body() -> None:
        async with world.engine(retry=QUICK) as engine:
            (row,) = await decided(world, engine)
            assert row["committed"] or "gain" in row["reason"]
            again = [each for each in await engine.store.evaluations("run") if each.phase == "commit"]
            assert len(again) == len(set(asked)) - 1 == isinstance(fault, DataLoss)

    in_world(world, body)


def test_the_replica_that_has_the_weights_may_be_gone_for_good(world: Any) -> None:
    # Two replicas of one student; whichever is asked first to keep a version never answers again.
    replicas = (world.a, world.b)
    gone: list[Any] = []
    for each in replicas:

        async def away(request: Any, context: Any, each: Any = each, plain: Any = each.Commit) -> Any:
            if not gone:
                gone.append(each)
            if each is gone[0]:
                raise Unavailable("gone")
            return await plain(request, context)

        async def dead(request: Any, context: Any, each: Any = each, plain: Any = each.Evaluate) -> Any:
            if each in gone:
                raise Unavailable("gone")
            async for event in plain(request, context):
                yield event

        each.Commit, each.Evaluate = away, dead

    async def body() -> None:
        both = {"a": {"addresses": [each.address for each in replicas]}}
        async with world.engine(students=both, retry=QUICK) as engine:
            (row,) = await decided(world, engine, CONFIG.replace("attempts: 2", "attempts: 4"))
            (again,) = (each for each in await engine.store.evaluations("run") if each.phase == "commit")
            assert again.replica == next(each for each in replicas if each not in gone).address
            assert row["committed"] or "over the current version" in row["reason"]

    in_world(world, body)


def quick_inbox(monkeypatch: pytest.MonkeyPatch, *students: str) -> InboxConfig:
    """An inbox that looks often, and gives a student up soon."""
    for name in ("LOOK_S", "RUN_LOOK_S", "FAULT_S"):
        monkeypatch.setattr(inbox_worker, name, 0.05)
    values = {"students": students, "candidates": 2, "policy": "initial", "window_minutes": 60, "settle_s": 0}
    return parse_settings(values | {"deadlines": {"attempts": 2, "total_s": 0.5}}, InboxConfig)


def test_an_inbox_takes_a_document_back_that_a_fault_kept_from_being_decided(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick_inbox(monkeypatch, "a")
    plain, back = world.a.Commit, asyncio.Event()

    async def away(request: Any, context: Any) -> Any:
        if not back.is_set():
            raise Unavailable("away")
        return await plain(request, context)

    world.a.Commit = away

    async def body() -> None:
        async with world.engine(retry=QUICK) as engine:
            inboxes = Inboxes(engine, {"news": config}, lambda: datetime(2026, 5, 4, 2, 10, tzinfo=UTC))
            await inboxes.start()
            await inboxes.submit("news", world.tasks[:1])
            while not (await inboxes.documents("news"))[0].attempts:  # noqa: ASYNC110 - rows tell no event
                await asyncio.sleep(0.02)
            back.set()
            done = InboxDocumentState.DONE
            while (found := (await inboxes.documents("news"))[0]).state is not done:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            first, *_ = [await engine.store.commits(run_id) for run_id in await engine.store.run_ids()]
            assert (first[0]["committed"], first[0]["fault"]) == (False, True)
            assert [each.committed for each in found.outcomes] == [True]
            await inboxes.stop()

    in_world(world, body)


def test_a_student_that_a_fault_kept_out_is_not_told_of_as_left_alone(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick_inbox(monkeypatch, "a", "b")

    async def away(request: Any, context: Any) -> Any:
        raise Unavailable("away")

    world.a.Commit = away

    async def body() -> None:
        async with world.engine(retry=QUICK) as engine:
            inboxes = Inboxes(engine, {"news": config}, lambda: datetime(2026, 5, 4, 2, 10, tzinfo=UTC))
            await inboxes.start()
            await inboxes.submit("news", world.tasks[:1])
            done = InboxDocumentState.DONE
            while (found := (await inboxes.documents("news"))[0]).state is not done:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.02)
            told = {each.student: (each.committed, each.fault) for each in found.outcomes}
            assert told == {"a": (False, True), "b": (True, False)}
            assert "a: not decided, the student could not keep it" in outcome_text(found)
            assert "b: committed" in outcome_text(found)
            await inboxes.stop()

    in_world(world, body)
