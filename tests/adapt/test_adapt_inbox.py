"""Inboxes over a real database: windows and budgets hold, and a restart at any moment loses and doubles nothing."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import inbox_worker
from orchestrator.inbox_config import InboxConfig
from orchestrator.inbox_ending import Decided, ending_of
from orchestrator.inbox_rows import Batch, InboxRows
from orchestrator.inboxes import Inboxes
from orchestrator.schedule import Begin, Window
from tutelage.domain.errors import AlreadyExists, InvalidInput, NotFound
from tutelage.domain.evaluation import Failure
from tutelage.domain.inbox import InboxDocumentState
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.settings import parse_settings

NIGHT = datetime(2026, 5, 4, 2, 10, tzinfo=UTC)
RECIPE = {"students": ["a", "b"], "candidates": 2, "policy": "initial", "window_minutes": 60, "settle_s": 0}
# Two candidates on two students, and three more trainings for each of two commits.
MOST = 10


def document(name: str, text: str = "Text.") -> TaskWithQuiz:
    return TaskWithQuiz(Task(name, DocumentTask(f"Title {name}", text)), Quiz((Question("q", "What?", "That"),)))


DOCUMENTS = tuple(document(f"d{number}") for number in range(5))


class Clock:
    def __init__(self, now: datetime = NIGHT) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_S", "RUN_LOOK_S", "FAULT_S"):
        monkeypatch.setattr(inbox_worker, name, 0.05)


def config(**changes: Any) -> InboxConfig:
    return parse_settings(RECIPE | changes, InboxConfig)


@contextlib.asynccontextmanager
async def opened(world: Any, clock: Clock, **changes: Any) -> AsyncIterator[tuple[Any, Inboxes]]:
    async with world.engine() as engine:
        inboxes = Inboxes(engine, {"news": config(**changes)}, clock)
        await inboxes.start()
        try:
            yield engine, inboxes
        finally:
            await inboxes.stop()


async def until(inboxes: Inboxes, *states: InboxDocumentState, name: str = "news", timeout_s: float = 60) -> Any:
    """The documents, once they have these states in turn."""

    async def look() -> Any:
        while True:
            found = await inboxes.documents(name)
            if [item.state for item in found] == list(states):
                return found
            await asyncio.sleep(0.02)

    return await asyncio.wait_for(look(), timeout_s)


async def evaluations_ended(engine: Any) -> int:
    """Of all runs."""
    found = [await engine.store.evaluations(run_id) for run_id in await engine.store.run_ids()]
    return sum(row.final for rows in found for row in rows)


DONE, WAITS, GIVEN_UP = InboxDocumentState.DONE, InboxDocumentState.WAITING, InboxDocumentState.FAILED


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


def _dropped(folder: Path, name: str, *items: TaskWithQuiz) -> None:
    lines = [
        json.dumps(
            {
                "id": item.task.id,
                "title": item.task.content.title,
                "text": item.task.content.text,
                "questions": [
                    {"id": each.id, "question": each.text, "answer": each.answer} for each in item.quiz.questions
                ],
            }
        )
        for item in items
        if isinstance(item.task.content, DocumentTask)
    ]
    (folder / name).write_text("\n".join(lines), encoding="utf-8")


def test_files_dropped_in_the_folder_are_taken_in_or_put_aside(world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()

    async def emptied() -> None:
        def left() -> bool:
            return any(path.is_file() and not path.is_symlink() and path.suffix != ".part" for path in folder.iterdir())

        while left():  # noqa: ASYNC110 - files tell no event
            await asyncio.sleep(0.02)

    async def body() -> None:
        await world.up()
        clock = Clock(NIGHT + timedelta(hours=5))
        _dropped(folder, "first.jsonl", *DOCUMENTS[:2])
        _dropped(folder, "half.part", DOCUMENTS[4])
        (folder / "broken.jsonl").write_text('{"id": "x"', encoding="utf-8")
        (folder / "link.jsonl").symlink_to(folder / "half.part")
        async with opened(world, clock, folder=str(folder)) as (_, inboxes):
            await asyncio.wait_for(emptied(), 20)
            found = await inboxes.documents("news")
            assert [(item.id, item.source) for item in found] == [("d0", "first.jsonl"), ("d1", "first.jsonl")]
            assert (folder / "taken" / "first.jsonl").exists()
            assert (folder / "refused" / "broken.jsonl").exists()
            assert "broken.jsonl:1" in (folder / "refused" / "broken.jsonl.why.txt").read_text()
            # The same file again, as after a stop between storing and moving, and one that contradicts it.
            _dropped(folder, "first.jsonl", *DOCUMENTS[:2])
            _dropped(folder, "other.jsonl", document("d0", "Another text."))
            await asyncio.wait_for(emptied(), 20)
            assert len(await inboxes.documents("news")) == 2
            assert (folder / "taken" / "first-2.jsonl").exists()
            assert "other content" in (folder / "refused" / "other.jsonl.why.txt").read_text()
            assert (folder / "half.part").exists()
            assert (folder / "link.jsonl").is_symlink()
            clock.now = NIGHT + timedelta(days=1)
            await until(inboxes, DONE, DONE)
        await world.down()

    asyncio.run(body())


def test_a_file_that_is_still_written_is_left_alone(world: Any, tmp_path: Path) -> None:
    folder = tmp_path / "drop"
    folder.mkdir()

    async def body() -> None:
        await world.up()
        _dropped(folder, "fresh.jsonl", DOCUMENTS[0])
        async with opened(world, Clock(), folder=str(folder), settle_s=60) as (_, inboxes):
            await asyncio.sleep(0.4)
            assert await inboxes.documents("news") == []
        assert (folder / "fresh.jsonl").exists()
        await world.down()

    asyncio.run(body())


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


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cron": "0 2 * *"}, "five fields"),
        ({"cron": "0 0 31 2 *"}, "cron"),
        ({"time_zone": "Mars/Olympus"}, "time_zone"),
        ({"time_zone": "../etc/passwd"}, "time_zone"),
        ({"budget": MOST - 1}, "fewer than the 10 that one document can take"),
        ({"graders": ["f1"]}, "contains"),
        ({"batch": 0}, "batch"),
    ],
)
def test_settings_that_could_never_work_are_refused(changes: dict[str, Any], named: str) -> None:
    assert config().evaluations_per_document == MOST
    with pytest.raises(InvalidInput, match=named):
        config(**changes)


def test_an_inbox_is_for_students_that_there_are(world: Any) -> None:
    with pytest.raises(ValueError, match=r"inboxes.news.students: 'zoe' must be one of students \(a, b\)"):
        world.settings(inboxes={"news": RECIPE | {"students": ["zoe"]}})
    with pytest.raises(ValueError, match=r"inboxes\.News: a name is"):
        world.settings(inboxes={"News": RECIPE})
    both = RECIPE | {"folder": "drop"}
    with pytest.raises(ValueError, match="each a folder of its own"):
        world.settings(inboxes={"one": both, "two": both})


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
