"""Runs that are paused, resumed, extended, cloned and planned; and runs whose students are not known any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import yaml

from orchestrator.committing import Committer
from orchestrator.evaluation_keys import RoundKeys, evaluation_key, round_seed
from orchestrator.report.phases import phase_times
from orchestrator.run_events import Evaluate
from tests.orchestrator.world import in_world
from tutelage.domain.canonical import content_hash
from tutelage.domain.errors import InvalidInput, PreconditionFailed
from tutelage.domain.run import RunState
from tutelage.domain.self_edit import SelfEdit, TextDocument
from tutelage.domain.task import Quiz

SMALL = """
students: [a, b]
candidates: 2
rounds: 1
seed: 7
reward: {grader_weights: {contains: 1.0}}
"""


async def undisturbed(world: Any, config: str) -> dict[Any, Any]:
    async with world.engine() as engine:
        await world.start(engine, config=config)
        assert (await world.done(engine)).state is RunState.DONE
        return await world.rewards(engine)  # type: ignore[no-any-return]


def test_a_paused_run_begins_nothing_and_ends_as_it_would_have_ended(world: Any, tmp_path: Any) -> None:
    calm = type(world)(f"sqlite:///{tmp_path / 'calm.sqlite'}")
    expected = in_world(calm, lambda: undisturbed(calm, calm.config))

    async def body() -> None:
        world.a.delay_s = world.b.delay_s = 0.1
        async with world.engine() as engine:
            await world.start(engine)
            await world.until(lambda: len(world.a.trained) >= 2)
            assert (await engine.pause_run("run")).state is RunState.PAUSED
            await world.until(lambda: engine._driving.runner("run") is None)
            trained = len(world.a.trained) + len(world.b.trained)
            assert world.a.running == world.b.running == 0
            await asyncio.sleep(0.5)
            assert len(world.a.trained) + len(world.b.trained) == trained
            done = (await engine.summary("run")).evaluations_done
            # What was under way was waited for and counts.
            assert done >= trained
            assert (await engine.pause_run("run")).state is RunState.PAUSED
        async with world.engine() as engine:
            # A new start does not wake it.
            assert engine._driving.runner("run") is None
            assert (await engine.summary("run")).state is RunState.PAUSED
            watched = asyncio.create_task(world.done(engine))
            assert (await engine.resume_run("run")).state is RunState.RUNNING
            assert (await watched).state is RunState.DONE
            assert await world.rewards(engine) == expected
            kinds = [event.kind for event in await engine.store.events("run")]
            assert kinds.count("run_paused") == kinds.count("run_resumed") == 1
            for call in (engine.pause_run, engine.resume_run):
                with pytest.raises(PreconditionFailed, match="done"):
                    await call("run")

    in_world(world, body)


def test_pausing_and_resuming_at_once_loses_nothing(world: Any) -> None:
    async def body() -> None:
        world.a.delay_s = world.b.delay_s = 0.2
        async with world.engine(run_lease_s=0.9) as engine:
            await world.start(engine, config=SMALL)
            for _ in range(3):
                await asyncio.sleep(0.1)
                await engine.pause_run("run")
                await engine.resume_run("run")
            assert (await world.done(engine)).state is RunState.DONE
            assert len(await world.rewards(engine)) == 8

    in_world(world, body)


def test_a_paused_run_can_be_cancelled(world: Any) -> None:
    async def body() -> None:
        world.a.delay_s = 5
        async with world.engine() as engine:
            await world.start(engine, config=SMALL)
            await world.until(lambda: world.a.running > 0)
            await engine.pause_run("run")
            assert (await engine.cancel_run("run")).state is RunState.CANCELLED
            assert world.a.cancelled
            assert engine._driving.runner("run") is None

    in_world(world, body)


def test_a_run_that_was_cancelled_elsewhere_commits_nothing_more(world: Any) -> None:
    plain, asked, done = world.a.Commit, asyncio.Event(), asyncio.Event()

    async def slow(request: Any, context: Any) -> Any:
        asked.set()
        await asyncio.sleep(0.5)
        reply = await plain(request, context)
        done.set()
        return reply

    world.a.Commit = slow

    async def body() -> None:
        # The one that drives looks at the run's state only every five seconds.
        async with world.engine() as one, world.engine() as other:
            await world.start(one, config=SMALL.replace("[a, b]", "[a]"))
            await asked.wait()
            assert (await other.cancel_run("run")).state is RunState.CANCELLED
            await done.wait()
            await world.until(lambda: one._driving.runner("run") is None)
            assert await one.store.commits("run") == []
            assert [each.current_adapter_version for each in await one.list_students()] == ["", ""]
            assert [event.kind for event in await one.store.events("run")][-1] == "run_cancelled"

    in_world(world, body)


def test_students_stop_for_a_run_whose_driver_learns_of_its_end_by_what_it_may_not_write(world: Any) -> None:
    async def body() -> None:
        world.a.delay_s, world.b.delay_s = 0.5, 60
        # It looks at the run's state only every hundred seconds.
        async with world.engine(run_lease_s=300) as engine:
            await world.start(engine)
            await world.until(lambda: world.a.running > 0 and world.b.running > 0)
            await engine.store.end_run("run", RunState.CANCELLED, "")
            await world.until(lambda: engine._driving.runner("run") is None)
            evaluating = {key_id for key_id in world.b.keys if key_id not in world.b.reports}
            assert set(world.b.cancelled) == evaluating != set()

    in_world(world, body)


def test_rounds_that_are_added_are_those_of_a_longer_run(world: Any, tmp_path: Any) -> None:
    calm = type(world)(f"sqlite:///{tmp_path / 'calm.sqlite'}")
    longer = SMALL.replace("rounds: 1", "rounds: 3")
    expected = in_world(calm, lambda: undisturbed(calm, longer))

    async def body() -> None:
        async with world.engine() as engine:
            await world.start(engine, config=SMALL)
            assert (await world.done(engine)).state is RunState.DONE
            commits = [row for row in await engine.store.commits("run") if row["committed"]]
            assert (await engine.extend_run("run", 1)).rounds == 2
            world.a.delay_s = world.b.delay_s = 0.05
            # Once more while it runs.
            assert (await engine.extend_run("run", 1)).state is RunState.RUNNING
            summary = await world.done(engine)
            assert (summary.state, summary.rounds, summary.round) == (RunState.DONE, 3, 3)
            assert summary.evaluations_done == summary.evaluations_total
            assert await world.rewards(engine) == expected
            after = await engine.store.commits("run")
            assert [row for row in commits if row not in after] == []
            with pytest.raises(InvalidInput, match="rounds"):
                await engine.extend_run("run", 0)
            await world.start(engine, "other", SMALL + "name: other\n")
            await engine.cancel_run("other")
            with pytest.raises(PreconditionFailed, match="cancelled"):
                await engine.extend_run("other", 1)

    in_world(world, body)


def test_a_run_that_is_extended_while_it_commits_tells_when_its_next_round_began(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = Committer.commit

    async def body() -> None:
        committing = asyncio.Event()

        async def slow(*given: Any) -> None:
            committing.set()
            await asyncio.sleep(1)
            await commit(*given)

        monkeypatch.setattr(Committer, "commit", slow)
        async with world.engine() as engine:
            await world.start(engine, config=SMALL)
            await asyncio.wait_for(committing.wait(), 60)
            await engine.extend_run("run", 1)
            assert (await world.done(engine)).state is RunState.DONE
            events = await engine.store.events("run")
            assert [each.detail["round"] for each in events if each.kind == "round_started"] == [1, 2]
            timed = {(each.round, each.phase) for each in phase_times(events)}
            assert {(2, "writing"), (2, "evaluating"), (2, "updating")} <= timed

    in_world(world, body)


def test_a_clone_has_the_tasks_and_the_settings_but_for_the_changes(world: Any) -> None:
    async def body() -> None:
        async with world.engine() as engine:
            await world.start(engine, config=SMALL)
            await world.done(engine)
            await engine.clone_run("run", "same", "commit: {when: never}\n")
            changes = "seed: 8\nreward: {across: worst}\ncommit: {when: never}\n"
            summary, created = await engine.clone_run("run", "changed", changes)
            assert (summary.run_id, created) == ("changed", True)
            assert (await engine.clone_run("run", "changed", changes))[1] is False
            for run_id in ("same", "changed"):
                assert (await world.done(engine, run_id)).state is RunState.DONE
            run = await engine.store.run("changed")
            assert run.config.seed == 8
            assert run.config.reward.across == "worst"
            assert run.config.reward.grader_weights == {"contains": 1.0}
            assert tuple(run.tasks.values()) == world.tasks
            # The first run was committed; both were evaluated over what it made.
            assert run.students["a"].adapter_version
            values = {name: set((await world.rewards(engine, name)).values()) for name in ("same", "changed")}
            assert values["same"] != values["changed"]
            with pytest.raises(InvalidInput, match=r"config\.colour"):
                await engine.clone_run("run", "wrong", "colour: red\n")
            with pytest.raises(InvalidInput, match="changes"):
                await engine.clone_run("run", "wrong", "[1, 2]")

    in_world(world, body)


def test_a_clone_is_rewarded_by_the_weights_of_the_changes_alone(world: Any) -> None:
    async def body() -> None:
        async with world.engine() as engine:
            await world.start(engine, config=SMALL + "update: {options: {rule: best, fraction: 0.5}}\n")
            changes = "reward: {grader_weights: {loglik: 2}, across: worst}\nupdate: {options: {rule: lead}, rank: 4}\n"
            await engine.clone_run("run", "other", changes)
            first, other = (await engine.store.run("run")).config, (await engine.store.run("other")).config
            assert other.reward == first.reward.model_copy(
                update={"grader_weights": {"loglik": 2.0}, "across": "worst"}
            )
            assert other.update == first.update.model_copy(update={"options": {"rule": "lead"}, "rank": 4})

    in_world(world, body)


def test_a_plan_tells_the_work_and_the_time_and_stores_nothing(world: Any) -> None:
    async def body() -> None:
        world.a.delay_s = world.b.delay_s = 0.1
        async with world.engine() as engine:
            plan = await engine.plan_run("run", SMALL, world.tasks, Quiz())
            assert (plan.groups, plan.evaluations, plan.updates, plan.seconds) == (2, 8, 1, None)
            assert yaml.safe_load(plan.resolved_yaml)["deadlines"]["attempts"] == 8
            assert await engine.list_runs() == []
            assert world.teacher.written == []
            with pytest.raises(InvalidInput) as caught:
                await engine.plan_run("run", "students: [zoe]\nformat: haiku\n", (), Quiz())
            fields = {each.field for each in caught.value.violations}
            assert fields == {"tasks", "config.students[0]", "config.format"}
            await world.start(engine, config=SMALL)
            await world.done(engine)
            assert (await engine.resolved_yaml("run")) == plan.resolved_yaml
            plan = await engine.plan_run("next", SMALL.replace("rounds: 1", "rounds: 9"), world.tasks, Quiz())
            # Student b has one slot and 36 evaluations of 0.1 s.
            assert plan.seconds is not None
            assert 3.6 < plan.seconds < 40

    in_world(world, body)


def test_a_run_whose_student_is_not_configured_any_more_waits_and_says_so_once(
    world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        world.a.delay_s = world.b.delay_s = 0.1
        async with world.engine() as engine:
            await world.start(engine, config=SMALL)
            await asyncio.sleep(0.1)
        async with world.engine(students={"a": {"address": world.a.address}}, run_lease_s=0.3) as engine:
            # It is looked at ten times.
            await asyncio.sleep(1)
            assert sum("no orchestrator" in record.getMessage() for record in caplog.records) == 1
            summary = await engine.summary("run")
            assert summary.state is RunState.RUNNING
            assert "'b'" in summary.message
            assert engine._driving.runner("run") is None
            kinds = [event.kind for event in await engine.store.events("run")]
            assert kinds.count("run_waits") == 1
        async with world.engine() as engine:
            summary = await world.done(engine)
            assert (summary.state, summary.message) == (RunState.DONE, "")
            assert len(await world.rewards(engine)) == 8

    in_world(world, body)


def test_an_id_put_together_from_parts_is_the_keys_own(world: Any) -> None:
    async def body() -> None:
        world.a.delay_s = world.b.delay_s = 60
        async with world.engine() as engine:
            await world.start(engine, config=SMALL + "graders: [contains, loglik]\n")
            run = await engine.store.run("run")
            keys = RoundKeys(run)
            for text in ("An edit.", 'Ein "Büchlein"\n\\ 🙂'):
                edit = SelfEdit((TextDocument(text),))
                for student in ("a", "b"):
                    work = Evaluate(1, "t1", content_hash(edit), student, 0)
                    over = run.students[student].adapter_version
                    for _ in range(2):
                        key, evaluation_id = keys.of(work, edit)
                        assert key == evaluation_key(run, work, edit, over, round_seed(run, work))
                        assert evaluation_id == key.id

    in_world(world, body)
