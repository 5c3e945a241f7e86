"""A run's candidates under another reward: over gRPC and the command line, from what is stored, no student asked."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.recomputing import recomputed_rewards
from orchestrator.service import OrchestratorService
from tests.orchestrator.world import World, in_world
from tutelage import extensions
from tutelage.cli import runs
from tutelage.client import OrchestratorClient
from tutelage.domain.errors import InvalidInput, NotFound
from tutelage.domain.recomputed_reward import RecomputedReward, compared
from tutelage.domain.run import RunState
from tutelage.domain.task import Quiz
from tutelage.extensions import REWARDS
from tutelage.rpc.config import ChannelSettings
from tutelage.rpc.server import serve

SAME = "grader_weights: {contains: 1}"


@asynccontextmanager
async def served(world: World, folder: Path) -> AsyncIterator[str]:
    """The address of an orchestrator between the world's services."""
    ready, stop = folder / "ready.json", asyncio.Event()
    settings = world.settings(server={"ready_file": str(ready), "grace_s": 1})
    server = asyncio.create_task(serve(OrchestratorService(settings), settings.server, stop=stop))
    while not ready.exists():
        await asyncio.sleep(0.05)
        assert not server.done(), server.exception()
    yield json.loads(ready.read_text())["address"]
    stop.set()
    await server


def test_over_grpc_and_the_command_line(world: World, tmp_path: Path) -> None:
    world.b.luck = 1

    async def body() -> None:
        async with (
            served(world, tmp_path) as address,
            OrchestratorClient(ChannelSettings(address=address)) as client,
        ):
            await client.start_run("run", world.config, world.tasks, Quiz())
            assert [item async for item in client.watch_run("run")][-1][0].state is RunState.DONE
            trained = [len(student.trained) for student in (world.a, world.b)]

            same = await client.recompute_rewards("run", SAME)
            assert [each.candidate_id for each in same[:5]] == [f"run/1/t1/{n}" for n in range(4)] + ["run/1/t2/0"]
            assert len(same) == 16
            for each in same:
                assert each.recomputed == (each.stored if each.stored is None else pytest.approx(each.stored))
            # What the teacher learnt from.
            learnt = [
                item.reward for update in world.teacher.updates for group in update.groups for item in group.candidates
            ]
            assert [each.stored for each in same] == learnt
            assert compared(same).rank_correlation == pytest.approx(1.0)

            dearer = await client.recompute_rewards("run", "{grader_weights: {contains: -2}, rejected_reward: -9}")
            assert [each.stored for each in dearer] == learnt
            # The last of each group was rejected by the parser: it ranks now.
            assert [each.recomputed for each in dearer[3::4]] == [-9] * 4
            for each in dearer:
                assert each.stored is None or each.recomputed == pytest.approx(-2 * each.stored)
            assert compared(dearer).rank_correlation == pytest.approx(-1.0)

            worst = await client.recompute_rewards("run", f"{SAME}\nacross: worst")
            assert all(a.recomputed < a.stored for a in worst if a.stored is not None and a.recomputed is not None)

            await check_refusals(client)
            with pytest.raises(NotFound):
                await client.recompute_rewards("nothing", SAME)
            await check_command(address, tmp_path, dearer)
            assert [len(student.trained) for student in (world.a, world.b)] == trained

    in_world(world, body)


async def check_refusals(client: OrchestratorClient) -> None:
    for reward_yaml, field, allowed in (
        ("grader_weights: {f1: 1.0}", "reward.grader_weights.f1", "contains, loglik"),
        ("grader_weights: {contains: much}", "reward.grader_weights.contains", "number"),
        ("grader_weights: {}", "reward.grader_weights", "at least 1"),
        ("penalty: 1", "reward.penalty", "retention_penalty"),
        ("retention_penalty: 0.5", "reward.retention_penalty", "no retention quiz"),
        ("across: per_student", "reward.across", "mean, worst"),
        ("formula: nobodys", "reward.formula", "there is none"),
        ("[contains]", "reward.document", "a mapping"),
        ("grader_weights: {contains: 1.7e308}", "reward", "finite"),
    ):
        with pytest.raises(InvalidInput) as caught:
            await client.recompute_rewards("run", reward_yaml)
        (violation,) = caught.value.violations
        assert violation.field == field
        assert allowed in violation.allowed


async def check_command(address: str, folder: Path, dearer: list[RecomputedReward]) -> None:
    file = folder / "reward.yaml"
    file.write_text("grader_weights: {contains: -2}\nrejected_reward: -9\n")

    async def said(*more: str) -> str:
        arguments = ["rewards", "run", "--reward", str(file), "--orchestrator", address, *more]
        done = await asyncio.to_thread(CliRunner().invoke, runs.app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    table = await said()
    assert "recomputed reward" in table
    last = table.strip().splitlines()[-1]
    assert "12 of 16 candidates that both score; rank correlation within groups -1.00 (4 groups)" in last
    rows = list(csv.DictReader(io.StringIO(await said("--format", "csv"))))
    assert (len(rows), rows[-1]["group"]) == (17, "all")
    assert float(rows[-1]["rank_correlation"]) == pytest.approx(-1.0)
    by_id = {row["candidate"]: row["recomputed_reward"] for row in rows[:-1]}
    assert {name: float(value) for name, value in by_id.items()} == {
        each.candidate_id: each.recomputed for each in dearer
    }
    best = [float(row["recomputed_reward"]) for row in rows[:4]]
    assert best == sorted(best, reverse=True)
    whole = json.loads(await said("--format", "json"))
    assert len(whole["rewards"]) == 16
    assert whole["comparison"]["scored"] == 12


def counted(parts: Mapping[str, float]) -> float:
    """A formula of a package."""
    return 3 * parts["gain_contains"]


def broken(parts: Mapping[str, float]) -> float:
    """Another, which wants what was not measured."""
    return parts["forgotten"]


def test_a_formula_and_a_run_of_one_student_each(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint(name, f"{__name__}:{name}", REWARDS) for name in ("counted", "broken")]
    monkeypatch.setattr(extensions, "_points", lambda group: points if group == REWARDS else [])
    config = world.config.replace("reward: {", "reward: {across: per_student, ").replace("rounds: 2", "rounds: 1")

    async def body() -> None:
        async with world.engine() as engine:
            await world.start(engine, config=config)
            assert (await world.done(engine)).state is RunState.DONE
            run = await engine.store.run("run")
            # The run's own `across` holds where none is named.
            found = await recomputed_rewards(engine.store, run, "{formula: counted, grader_weights: {contains: 1}}")
            assert {each.group for each in found} == {f"1/{task}/{who}" for task in ("t1", "t2") for who in "ab"}
            assert [each.candidate_id for each in found[4:8]] == [f"run/1/t1/{n}" for n in range(4, 8)]
            assert sum(each.stored is not None for each in found) == 12
            for each in found:
                assert each.stored is None or each.recomputed == pytest.approx(3 * each.stored)
            for reward_yaml, field, allowed in (
                ("{formula: broken, grader_weights: {contains: 1}}", "reward.formula", "KeyError: 'forgotten'"),
                ("across: worst", "reward.across", "per_student, as each candidate"),
            ):
                with pytest.raises(InvalidInput) as caught:
                    await recomputed_rewards(engine.store, run, reward_yaml)
                (violation,) = caught.value.violations
                assert violation.field == field
                assert allowed in violation.allowed

    in_world(world, body)
