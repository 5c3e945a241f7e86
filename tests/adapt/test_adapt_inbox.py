"""An inbox over a real database: its windows and budgets hold, and each document ends as its students say."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.adapt.opened_inbox import (
    DOCUMENTS,
    DONE,
    GIVEN_UP,
    NIGHT,
    RECIPE,
    WAITS,
    Clock,
    config,
    evaluations_ended,
    opened,
    until,
)
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import Failure
from tutelage.domain.inbox import InboxDocumentState

pytestmark = pytest.mark.usefixtures("quick_inbox")

# Two candidates on two students, and three more trainings for each of two commits.
MOST = 10


def test_windows_work_off_what_their_budget_allows(world: Any) -> None:
    async def body() -> None:
        await world.up()
        clock = Clock()
        async with opened(world, clock, budget=21, batch=8) as (engine, inboxes):
            assert await inboxes.submit("news", DOCUMENTS) == (5, 0)
            # Reserved 20 of 21 for two documents; they really took fewer, so that the same window begins another.
            found = await until(inboxes, DONE, DONE, DONE, WAITS, WAITS)
            inbox = await inboxes.inbox("news")
            assert inbox.spent == await evaluations_ended(engine) <= 21
            assert inbox.window_start == datetime(2026, 5, 4, 2, 0, tzinfo=UTC)
            assert {item.run_id for item in found[:2]} == {"inbox-news-20260504t0200-1"}
            assert found[2].run_id == "inbox-news-20260504t0200-2"
            for item in found[:3]:
                assert {each.student for each in item.outcomes if each.committed} == {"a", "b"}
            # Between windows nothing is begun.
            clock.now = NIGHT + timedelta(hours=5)
            assert (await inboxes.inbox("news")).window_start is None
            await asyncio.sleep(0.3)
            assert (await inboxes.inbox("news")).waiting == 2
            clock.now = NIGHT + timedelta(days=1)
            found = await until(inboxes, DONE, DONE, DONE, DONE, DONE)
            assert found[4].run_id == "inbox-news-20260505t0200-1"
        assert world.teacher.updates == []
        await world.down()

    asyncio.run(body())


def test_faults_put_a_document_back_and_at_last_give_it_up(world: Any) -> None:
    def outcome(key: Any) -> Any:
        text = key.self_edit.documents[0].text
        return Failure("out of memory", retryable=False) if "d1" in text else None

    world.a.outcome = world.b.outcome = outcome

    async def body() -> None:
        await world.up()
        async with opened(world, Clock(), attempts=2) as (engine, inboxes):
            await inboxes.submit("news", DOCUMENTS[:3])
            found = await until(inboxes, DONE, GIVEN_UP, DONE)
            assert found[1].attempts == 2
            assert "no evaluation of it could be finished on a, b" in found[1].message
            assert not any(item.committed for item in found[1].outcomes)
            assert len(await engine.store.run_ids()) == 2
        await world.down()

    asyncio.run(body())


def test_an_edit_that_earns_nothing_leaves_the_student_alone_and_is_not_tried_again(world: Any) -> None:
    async def body() -> None:
        await world.up()
        async with opened(world, Clock(), gate={"min_gain": 2.0}) as (engine, inboxes):
            await inboxes.submit("news", DOCUMENTS[:1])
            (found,) = await until(inboxes, DONE)
            assert [item.committed for item in found.outcomes] == [False, False]
            assert all("is not above 2.0" in item.reason for item in found.outcomes)
            assert len(await engine.store.run_ids()) == 1
        await world.down()

    asyncio.run(body())


def test_while_the_teacher_is_away_documents_wait_for_another_window(world: Any) -> None:
    async def body() -> None:
        await world.up()
        clock = Clock()
        await world.teacher.down()
        async with opened(world, clock) as (engine, inboxes):
            await inboxes.submit("news", DOCUMENTS[:1])
            await until(inboxes, InboxDocumentState.WORKING)
            clock.now = NIGHT + timedelta(hours=3)
            (found,) = await until(inboxes, WAITS)
            assert found.attempts == 0
            assert "the run cannot start" in found.message
            assert await engine.store.run_ids() == []
            await world.teacher.up()
            clock.now = NIGHT + timedelta(days=1)
            await until(inboxes, DONE)
        await world.down()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cron": "0 2 * *"}, "five fields"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "../etc/passwd"}, "time_zone"),
        ({"budget": MOST - 1}, "10 or more, the evaluations that one document can take"),
        ({"graders": ["f1"]}, "contains"),
        ({"batch": 0}, "batch"),
    ],
)
def test_settings_that_could_never_work_are_refused(changes: dict[str, Any], named: str) -> None:
    assert config().evaluations_per_document == MOST
    with pytest.raises(InvalidInput, match=named):
        config(**changes)


def test_an_inbox_is_for_students_that_there_are(world: Any) -> None:
    with pytest.raises(
        ValueError, match=r"inboxes.news.students\[0\]: 'zoe' is not allowed; allowed: one of students \(a, b\)"
    ):
        world.settings(inboxes={"news": RECIPE | {"students": ["zoe"]}})
    with pytest.raises(ValueError, match=r"inboxes\.News: .News. is not allowed; allowed: a name of 1 to 32"):
        world.settings(inboxes={"News": RECIPE})
    both = RECIPE | {"folder": "drop"}
    with pytest.raises(ValueError, match="a folder that no other inbox has"):
        world.settings(inboxes={"one": both, "two": both})
