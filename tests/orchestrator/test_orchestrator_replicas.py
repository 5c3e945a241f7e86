"""A student of several replicas over real gRPC: spread, lost, joined by more, and each keeping what it has."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from orchestrator import metrics
from orchestrator.addresses import Endpoint, endpoints
from orchestrator.config import OrchestratorSettings, StudentChannel
from orchestrator.engine import Engine
from tutelage.domain.errors import PreconditionFailed, Unavailable
from tutelage.domain.evaluation import Failure
from tutelage.domain.run import RunState
from tutelage.settings import parse_settings

ONE_STUDENT = """
students: [a]
candidates: 3
rounds: 2
seed: 7
reward: {grader_weights: {contains: 1.0}}
deadlines: {evaluation_s: 20, attempts: 6}
"""


@contextlib.asynccontextmanager
async def replicas(world: Any, count: int) -> AsyncIterator[list[Any]]:
    """Replicas of student a, all up."""
    made = [world.a, *(type(world.a)(slots=2) for _ in range(count - 1))]
    await world.teacher.up()
    for each in made:
        await each.up()
    try:
        yield made
    finally:
        for each in made:
            await each.down()
        await world.teacher.down()


async def calm_rewards(world: Any, tmp_path: Path) -> dict[Any, Any]:
    calm = type(world)(f"sqlite:///{tmp_path / 'calm.sqlite'}")
    async with replicas(calm, 1), calm.engine(students={"a": {"address": calm.a.address}}) as engine:
        await calm.start(engine, config=ONE_STUDENT)
        assert (await calm.done(engine)).state is RunState.DONE
        return await calm.rewards(engine)  # type: ignore[no-any-return]


def within(body: Any, timeout_s: float = 200) -> None:
    asyncio.run(asyncio.wait_for(body, timeout_s))


def test_work_is_spread_and_a_lost_replica_costs_no_reward(world: Any, tmp_path: Path) -> None:
    async def body() -> None:
        expected = await calm_rewards(world, tmp_path)
        async with replicas(world, 3) as (one, two, three):
            for each in (one, two, three):
                each.delay_s = 0.1
            students = {"a": {"address": one.address, "addresses": [two.address, three.address]}}
            async with world.engine(students=students) as engine:
                await world.start(engine, config=ONE_STUDENT)
                await world.until(lambda: two.running > 0)
                assert engine.dispatcher.slots("a") == 6
                await two.down()
                summary = await world.done(engine)
                assert (summary.state, summary.unscored) == (RunState.DONE, 0)
                assert await world.rewards(engine) == expected
                assert one.trained
                assert three.trained
                assert max(each.most_running for each in (one, two, three)) <= 2
                rows = await engine.store.evaluations("run")
                answered = {row.replica for row in rows}
                assert {one.address, three.address} <= answered
                assert all(row["committed"] for row in await engine.store.commits("run"))
                for row in rows:
                    server = next(each for each in (one, two, three) if each.address == row.replica)
                    assert row.evaluation_id in server.reports

    within(body())


def test_replicas_join_and_leave_while_a_run_goes_on(world: Any, tmp_path: Path) -> None:
    async def body() -> None:
        listed = tmp_path / "replicas"
        async with replicas(world, 2) as (first, second):
            first.delay_s = second.delay_s = 0.1
            listed.write_text(f"# of student a\n{first.address}\n", encoding="utf-8")
            settings = {"a": {"addresses_file": str(listed)}}
            async with world.engine(students=settings, dispatch={"resolve_s": 0.1}) as engine:
                await world.start(engine, config=ONE_STUDENT.replace("candidates: 3", "candidates: 24"))
                await world.until(lambda: first.trained)
                assert not second.trained
                listed.write_text(f"{second.address}\n{first.address}\n", encoding="utf-8")
                await world.until(lambda: second.trained)
                listed.write_text(f"{second.address}\n", encoding="utf-8")
                await world.until(lambda: not first.running and engine.dispatcher.slots("a") == 2)
                # Its channel is closed, once what it had has ended.
                left = world.until(lambda: ("a", first.address) not in engine.students._clients)
                await asyncio.wait_for(left, 20)
                count = len(first.trained)
                listed.unlink()  # Who cannot be looked up stays as it was.
                summary = await world.done(engine)
                assert (summary.state, summary.unscored) == (RunState.DONE, 0)
                assert len(first.trained) == count

    within(body())


def test_a_student_whose_last_replica_was_taken_off_the_list_does_not_answer(world: Any, tmp_path: Path) -> None:
    async def body() -> None:
        reachable = metrics.STUDENT_REACHABLE.labels("a")._value
        listed = tmp_path / "replicas"
        async with replicas(world, 1) as (only,):
            listed.write_text(f"{only.address}\n", encoding="utf-8")
            settings = {"a": {"addresses_file": str(listed)}}
            async with world.engine(students=settings, dispatch={"resolve_s": 0.1}):
                for text, answers in ((None, 1), ("# nobody\n", 0), (f"{only.address}\n", 1)):
                    if text is not None:
                        listed.write_text(text, encoding="utf-8")
                    async with asyncio.timeout(20):
                        await world.until(lambda answers=answers: reachable.get() == answers)

    within(body())


def test_a_replica_without_room_for_an_evaluation_is_full_and_not_broken(world: Any) -> None:
    async def body() -> None:
        async with replicas(world, 1) as (only,):
            # More in a row than a broken replica is forgiven; then there is room.
            left = [Failure("out of memory", exhausted=True)] * 5
            only.outcome = lambda key: left.pop() if left else None
            students = {"a": {"addresses": [only.address]}}
            retry = {"initial_s": 0.01, "maximum_s": 0.05}
            async with world.engine(students=students, retry=retry, dispatch={"set_aside_after": 1}) as engine:
                aside = []
                put_aside = engine.dispatcher._dispatch._aside

                def counted(*asked: Any) -> Any:
                    aside.append(asked)
                    return put_aside(*asked)

                engine.dispatcher._dispatch._aside = counted
                await world.start(engine, config=ONE_STUDENT)
                summary = await world.done(engine)
                assert (summary.state, summary.unscored, left, aside) == (RunState.DONE, 0, [], [])

    within(body())


def test_a_replica_of_another_model_is_not_asked_again_for_what_it_refused(world: Any) -> None:
    async def body() -> None:
        async with replicas(world, 2) as (good, other):
            other.outcome = lambda key: PreconditionFailed("key.base_revision is 'r1', this student's is 'r2'")
            students = {"a": {"addresses": [other.address, good.address]}}
            async with world.engine(students=students) as engine:
                await world.start(engine, config=ONE_STUDENT)
                summary = await world.done(engine)
                assert (summary.state, summary.unscored) == (RunState.DONE, 0)
                assert other.keys
                assert {row.replica for row in await engine.store.evaluations("run")} == {good.address}
                assert all(row.attempts == 1 for row in await engine.store.evaluations("run"))

    within(body())


def test_a_replica_that_refuses_its_caller_keeps_no_run_from_the_others_and_is_named(world: Any) -> None:
    async def refuse(request: object, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is wrong")

    async def body() -> None:
        refusing = type(world.a)(slots=2)
        refusing.Describe = refusing.ListAdapters = refuse
        await refusing.up()
        async with replicas(world, 1) as (good,):
            students = {"a": {"addresses": [refusing.address, good.address]}}
            async with world.engine(students=students) as engine:
                await world.start(engine, config=ONE_STUDENT)
                assert (await world.done(engine)).state is RunState.DONE
                (student,) = await engine.list_students()
                assert student.current_adapter_version
                back = await engine.set_current("a", student.current_adapter_version, "")
                assert (await engine.set_current("a", "", back.left_adapter_versions[0])).current_adapter_version
            async with world.engine(students={"a": {"address": refusing.address}}) as engine:
                where = refusing.address
                told = f"student 'a' at {where} refuses: {where}: UNAUTHENTICATED: the token is wrong"
                with pytest.raises(Unavailable, match=re.escape(told)):
                    await world.start(engine, "other", config=ONE_STUDENT)
        await refusing.down()

    within(body())


def test_a_name_stands_for_all_addresses_it_resolves_to(world: Any) -> None:
    async def body() -> None:
        async with replicas(world, 1) as (only,):
            port = only.address.rpartition(":")[2]
            found = await endpoints(StudentChannel(address=f"dns:localhost:{port}"))
            assert Endpoint(only.address, "localhost") in found
            addresses = ["127.0.0.1"]

            async def resolve(host: str, port: int) -> list[str]:
                if not addresses:
                    raise OSError("no such name")
                return addresses

            config = StudentChannel(address=f"dns:///students.invalid:{port}", addresses=(only.address,))
            assert await endpoints(config, resolve) == [Endpoint(only.address, "students.invalid")]
            addresses.append("::1")
            assert [each.address for each in await endpoints(config, resolve)] == [only.address, f"[::1]:{port}"]
            addresses.clear()
            with pytest.raises(Unavailable, match="does not resolve"):
                await endpoints(config, resolve)
            addresses.append("127.0.0.1")
            settings = world.settings(students={"a": config})
            engine = Engine(settings, resolve)
            await engine.start()
            await world.start(engine, config=ONE_STUDENT)
            assert (await world.done(engine)).state is RunState.DONE
            await engine.stop()

    within(body())


def test_a_file_of_addresses_with_a_line_that_is_none_is_told_by_that_line(tmp_path: Path) -> None:
    async def body() -> None:
        listed = tmp_path / "students"
        config = StudentChannel(addresses_file=listed)
        listed.write_text("# ada\n10.0.0.1:7072\n\n  [::1]:7072\n")
        assert [each.address for each in await endpoints(config)] == ["10.0.0.1:7072", "[::1]:7072"]
        listed.write_text("# ada\n10.0.0.1:7072\n10.0.0.2\n\nfe80::1\n")
        with pytest.raises(Unavailable) as caught:
            await endpoints(config)
        allowed = "host:port of the service, an IPv6 host in brackets"
        assert str(caught.value) == f"{listed} is not of addresses, {allowed}: line 3, '10.0.0.2'; line 5, 'fe80::1'"

    within(body())


def test_a_student_needs_an_address() -> None:
    text = "teacher: {address: 'x:1'}\nstudents: {a: {ca: x.pem}}\n"
    with pytest.raises(Exception, match=r"students\.a.*addresses_file"):
        parse_settings(text, OrchestratorSettings)
    with pytest.raises(Exception, match=r"students\.a\.addresses\[1\]: 'y' is not allowed; allowed: host:port"):
        parse_settings(text.replace("ca: x.pem", "addresses: ['x:1', y]"), OrchestratorSettings)
