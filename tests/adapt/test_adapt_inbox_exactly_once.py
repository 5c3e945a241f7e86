"""A document of an inbox is learned once: over restarts at any moment, claims at once, orchestrators side by side."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.inbox_ending import Decided, ending_of
from orchestrator.inbox_rows import Batch, InboxRows
from orchestrator.inboxes import Inboxes
from orchestrator.schedule import Begin, Window
from tests.adapt.opened_inbox import (
    DOCUMENTS,
    DONE,
    NIGHT,
    WAITS,
    Clock,
    config,
    document,
    evaluations_ended,
    opened,
    until,
)
from tutelage.domain.errors import AlreadyExists, InvalidInput, NotFound
from tutelage.domain.inbox import InboxDocumentState
from tutelage.domain.task import Question, Quiz

pytestmark = pytest.mark.usefixtures("quick_inbox")


def test_a_document_is_taken_once(world: Any) -> None:
    async def body() -> None:
        await world.up()
        async with opened(world, Clock(NIGHT + timedelta(hours=5))) as (_, inboxes):
            assert await inboxes.submit("news", DOCUMENTS[:2]) == (2, 0)
            assert await inboxes.submit("news", DOCUMENTS[1:3]) == (1, 1)
            with pytest.raises(AlreadyExists, match="d1"):
                await inboxes.submit("news", (DOCUMENTS[4], document("d1", "Another text.")))
            blank = dataclasses.replace(DOCUMENTS[3], quiz=Quiz((Question("q", "What?", " "),)))
            with pytest.raises(InvalidInput, match=r"tasks\[1\].quiz.questions\[0\].answer"):
                await inboxes.submit("news", (DOCUMENTS[4], blank))
            with pytest.raises(NotFound, match="news"):
                await inboxes.submit("other", DOCUMENTS)
            # All or none: what was refused left nothing behind.
            assert [item.id for item in await inboxes.documents("news")] == ["d0", "d1", "d2"]
        await world.down()

    asyncio.run(body())


@pytest.mark.parametrize("seed", range(3))
def test_restarts_at_any_moment_lose_and_double_nothing(world: Any, seed: int) -> None:
    chance = random.Random(seed)

    async def body() -> None:
        await world.up()
        world.a.delay_s = world.b.delay_s = 0.02
        clock = Clock()
        for number in range(12):
            async with opened(world, clock, budget=1000, batch=2) as (_, inboxes):
                if number < len(DOCUMENTS):
                    await inboxes.submit("news", DOCUMENTS[: number + 1])
                await asyncio.sleep(chance.uniform(0.0, 0.4))
        async with opened(world, clock, budget=1000, batch=2) as (engine, inboxes):
            await until(inboxes, *[DONE] * 5)
            kept: Counter[tuple[str, str]] = Counter()
            for run_id in await engine.store.run_ids():
                for row in await engine.store.commits(run_id):
                    kept[row["student"], row["task_id"]] += row["committed"]
            assert kept == {(student, item.task.id): 1 for student in "ab" for item in DOCUMENTS}
            assert (await inboxes.inbox("news")).spent == await evaluations_ended(engine)
            # Every version of a student has the one before as its parent: no commit was lost or made twice.
            for name, student in (("a", world.a), ("b", world.b)):
                current = next(item for item in await engine.list_students() if item.name == name)
                chain = []
                version = current.current_adapter_version
                while version:
                    chain.append(version)
                    version = student.adapters[version].parent_version
                assert len(chain) == 5
        await world.down()

    asyncio.run(body())


def _begin(window: Window, *names: str) -> Begin:
    return Begin(window, names, 10 * len(names))


def test_a_claim_that_was_never_begun_is_begun_after_the_restart(world: Any) -> None:
    async def body() -> None:
        await world.up()
        window = Window(datetime(2026, 5, 4, 2, 0, tzinfo=UTC))
        async with world.engine() as engine:
            rows = InboxRows(engine.store.engine)
            await rows.submit("news", DOCUMENTS[:2], "submitted")
            assert await rows.claim("news", "inbox-news-20260504t0200-1", _begin(window, "d0"))
        # Long after the window: what it began is finished, and nothing else is begun.
        async with opened(world, Clock(NIGHT + timedelta(minutes=1)), budget=10) as (_, inboxes):
            found = await until(inboxes, DONE, WAITS)
            assert found[0].run_id == "inbox-news-20260504t0200-1"
        await world.down()

    asyncio.run(body())


async def _claims(make_world: Any, url: str) -> None:
    world = make_world(url)
    await world.up()
    window = Window(datetime(2026, 5, 4, 2, 0, tzinfo=UTC))
    async with world.engine() as engine:
        rows = InboxRows(engine.store.engine)
        await asyncio.gather(*(rows.submit("race", DOCUMENTS, "submitted") for _ in range(4)))
        assert (await rows.counts("race"))["waiting"] == 5
        names = [f"inbox-race-{number}" for number in range(8)]
        won = await asyncio.gather(*(rows.claim("race", name, _begin(window, "d0", "d1")) for name in names))
        assert sum(won) == 1
        batch = await rows.open_batch("race")
        assert batch is not None
        assert [item.task.id for item in batch.tasks] == ["d0", "d1"]
        # Another batch is not begun beside it, not even of other documents with the newest count.
        now = await rows.last_window("race")
        assert now == Window(window.start, 20, 1)
        assert not await rows.claim("race", "beside", _begin(now, "d2"))
        endings = ending_of(batch, ("a",), [Decided("a", "d0", True, True), Decided("a", "d1", False, True)], [], 3, "")
        assert sum(await asyncio.gather(*(rows.settle(batch, 7, endings) for _ in range(4)))) == 1
        now = await rows.last_window("race")
        assert now == Window(window.start, 7, 1)
        # A claim that counts on what was before is too late; documents that are done are not to be had.
        assert not await rows.claim("race", "late", _begin(window, "d2"))
        assert not await rows.claim("race", "again", _begin(now, "d1", "d2"))
        assert await rows.claim("race", "next", _begin(now, "d2", "d3"))
        assert (await rows.counts("race")) == {"waiting": 1, "working": 2, "done": 2, "failed": 0}
    await world.down()


def test_of_several_claims_one_wins_on_sqlite(make_world: Any, tmp_path: Path) -> None:
    asyncio.run(_claims(make_world, f"sqlite:///{tmp_path / 'claims.sqlite'}"))


def test_of_several_claims_one_wins_on_postgresql(make_world: Any, postgres: str) -> None:
    asyncio.run(_claims(make_world, postgres))


@given(
    st.dictionaries(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["d0", "d1"])),
        st.tuples(st.booleans(), st.booleans(), st.booleans()),
    ),
    st.sets(st.tuples(st.sampled_from("ab"), st.sampled_from(["d0", "d1"]))),
    st.integers(0, 3),
    st.integers(1, 4),
)
def test_what_a_student_learned_is_never_begun_again(
    rows: dict[tuple[str, str], tuple[bool, bool, bool]], faulty: set[tuple[str, str]], attempts: int, limit: int
) -> None:
    batch = Batch("r", "news", 0, 20, DOCUMENTS[:2], {"d0": attempts, "d1": attempts})
    decided = [
        Decided(who, task, kept, kept or scored, fault and not kept)
        for (who, task), (kept, scored, fault) in rows.items()
    ]
    endings = ending_of(batch, ("a", "b"), decided, faulty, limit, "run r failed")
    assert set(endings) == {"d0", "d1"}
    for task_id, ending in endings.items():
        mine = [each for each in decided if each.task_id == task_id]
        assert ending.state is not InboxDocumentState.WORKING
        if any(each.committed for each in mine):
            assert ending.state is DONE
        if ending.state is WAITS:
            assert ending.attempts == attempts + 1 < limit
        if ending.state is DONE and not any(each.committed for each in mine):
            # Every student said no, and none for want of a machine.
            assert {each.student for each in mine} == {"a", "b"}
            assert all(each.scored or (each.student, task_id) not in faulty for each in mine)
            assert not any(each.fault for each in mine)


async def _pair(make_world: Any, url: str) -> None:
    world = make_world(url)
    await world.up()
    world.a.delay_s = world.b.delay_s = 0.05
    configs = {"pair": config(budget=1000, batch=1)}
    async with world.engine(run_lease_s=2) as one, world.engine(run_lease_s=2) as two:
        both = [Inboxes(engine, configs, Clock()) for engine in (one, two)]
        for each in both:
            await each.start()
        taken = await asyncio.gather(*(each.submit("pair", DOCUMENTS) for each in both))
        assert sum(new for new, _ in taken) == 5
        found = await until(both[0], *[DONE] * 5, name="pair", timeout_s=300)
        assert len({item.run_id for item in found}) == 5
        kept: Counter[tuple[str, str]] = Counter()
        for item in found:
            for row in await one.store.commits(item.run_id):
                kept[row["student"], row["task_id"]] += row["committed"]
        assert kept == {(student, item.task.id): 1 for student in "ab" for item in DOCUMENTS}
        for each in both:
            await each.stop()
    await world.down()


def test_two_orchestrators_share_an_inbox_on_sqlite(make_world: Any, tmp_path: Path) -> None:
    asyncio.run(_pair(make_world, f"sqlite:///{tmp_path / 'pair.sqlite'}"))


def test_two_orchestrators_share_an_inbox_on_postgresql(make_world: Any, postgres: str) -> None:
    asyncio.run(_pair(make_world, postgres))
