"""What a run may choose: when groups close, how far writing runs ahead, and how students' rewards become one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.report_builder import build_report
from orchestrator.run_config import RunConfig
from orchestrator.runner import Runner
from orchestrator.store_fault import StoreFault
from orchestrator.tally import RunningTally
from tests.orchestrator.world import in_world
from tutelage.domain.errors import InvalidInput, Unavailable
from tutelage.domain.evaluation import Failure
from tutelage.domain.run import RunState
from tutelage.domain.task import Question, Quiz
from tutelage.settings import parse_settings

BASE = """
candidates: 3
rounds: 1
seed: 7
reward: {grader_weights: {contains: 1.0}}
deadlines: {evaluation_s: 20, attempts: 3}
commit: {when: never}
"""


def failing(number: int) -> Any:
    def outcome(key: Any) -> Any:
        return Failure("a fault of the machine") if key.self_edit.documents[0].text.endswith(f"{number}") else None

    return outcome


def test_a_group_with_enough_does_not_try_the_rest_again(world: Any) -> None:
    async def body() -> None:
        world.a.outcome = failing(0)
        # So many that they are not used up before the others are scored, however slow the machine is.
        config = BASE.replace("attempts: 3", "attempts: 500") + "students: [a]\ngroup: {close: minimum, minimum: 2}\n"
        async with world.engine(retry={"initial_s": 0.3, "maximum_s": 0.3}) as engine:
            await world.start(engine, config=config)
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 2)
            lost = [row for row in await engine.store.evaluations("run") if row.state == "failed"]
            assert len(lost) == 2
            assert all(row.reward is None and "not needed" in row.reason and row.attempts < 500 for row in lost)
            rewards = [candidate.reward for candidate in world.teacher.updates[0].groups[0].candidates]
            assert [reward is None for reward in rewards] == [True, False, False]

    in_world(world, body)


def test_a_group_with_enough_waits_for_the_rest_only_so_long(world: Any) -> None:
    async def body() -> None:
        slow = asyncio.Event()

        class Slow(type(world.a)):  # type: ignore[misc]
            async def Evaluate(self, request: Any, context: Any) -> Any:
                if request.key.self_edit.documents[0].text.text.endswith("number 0"):
                    await slow.wait()
                async for each in super().Evaluate(request, context):
                    yield each

        await world.a.down()
        world.a = Slow(slots=3)
        await world.a.up()
        config = BASE + "students: [a]\ngroup: {close: minimum, minimum: 2, wait_s: 0.3}\n"
        async with world.engine() as engine:
            await world.start(engine, config=config)
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 2)
            # The student was told that nobody waits.
            assert len(world.a.cancelled) == 2
        slow.set()

    in_world(world, body)


@pytest.mark.parametrize("wait_s", [2.0, None])
def test_a_group_that_had_enough_before_a_restart_does_not_wait_for_what_hangs(
    world: Any, wait_s: float | None
) -> None:
    failed, go, hang = set[str](), asyncio.Event(), asyncio.Event()

    class Hanging(type(world.a)):  # type: ignore[misc]
        """Candidate 0 hangs; without a `wait_s` it fails once before. The others wait for `go`."""

        async def Evaluate(self, request: Any, context: Any) -> Any:
            text = request.key.self_edit.documents[0].text.text
            if text.endswith("number 0"):
                if wait_s is None and text not in failed:
                    failed.add(text)
                    raise Unavailable("lost")
                await hang.wait()
            await go.wait()
            async for each in super().Evaluate(request, context):
                yield each

    group = "close: minimum, minimum: 2" + (f", wait_s: {wait_s}" if wait_s else "")
    config = BASE.replace("evaluation_s: 20", "evaluation_s: 300") + f"students: [a]\ngroup: {{{group}}}\n"

    async def body() -> None:
        await world.a.down()
        world.a = Hanging(slots=6)
        await world.a.up()
        async with world.engine(retry={"initial_s": 0.05, "maximum_s": 0.05}) as engine:
            await world.start(engine, config=config)
            if wait_s:
                go.set()
                await world.until(lambda: len(world.a.trained) == 2)
            else:
                await world.until(lambda: len(failed) == 2)
            await asyncio.sleep(0.5)
        go.set()
        async with world.engine() as engine:
            summary = await world.done(engine, timeout_s=60)
            assert (summary.state, summary.unscored) == (RunState.DONE, 2)
            lost = [row for row in await engine.store.evaluations("run") if row.state == "failed"]
            assert len(lost) == 2
            assert all("not needed" in row.reason for row in lost)
        hang.set()

    in_world(world, body)


def test_unscored_are_the_candidates_without_a_reward_and_not_those_that_lack_a_repeat(world: Any) -> None:
    first: dict[str, int] = {}

    def outcome(key: Any) -> Any:
        text = key.self_edit.documents[0].text
        # Of number 0 one repeat, of number 1 both.
        broken = text.endswith("number 1") or (
            text.endswith("number 0") and first.setdefault(text, key.seed) == key.seed
        )
        return Failure("a fault of the machine") if broken else None

    async def body() -> None:
        world.a.outcome = outcome
        config = BASE.replace("attempts: 3", "attempts: 1") + "students: [a]\nevaluation_seeds: 2\n"
        async with world.engine() as engine:
            await world.start(engine, config=config)
            summary = await world.done(engine)
            rewards = [item.reward for group in world.teacher.updates[0].groups for item in group.candidates]
            states = await engine.store.reward_states("run")
            assert 0 < rewards.count(None) < len({row[0] for row in states if row[2] == "failed"})
            assert summary.unscored == rewards.count(None)
            assert RunningTally(states, ()).snapshot().unscored == rewards.count(None)

    in_world(world, body)


def test_a_group_with_too_few_is_not_learned_from(world: Any) -> None:
    async def body() -> None:
        world.a.outcome = lambda key: Failure("broken", False) if "t1" in key.self_edit.documents[0].text else None
        config = BASE + "students: [a]\ngroup: {close: minimum, minimum: 1}\n"
        async with world.engine() as engine:
            await world.start(engine, config=config)
            assert (await world.done(engine)).state is RunState.DONE
            first, second = world.teacher.updates[0].groups
            assert [candidate.reward for candidate in first.candidates] == [None] * 3
            assert None not in [candidate.reward for candidate in second.candidates]
            dropped = [event for event in await engine.store.events("run") if event.kind == "group_dropped"]
            assert [event.detail["task"] for event in dropped] == ["t1"]

    in_world(world, body)


def test_fail_fast_ends_the_run_with_its_reason(world: Any) -> None:
    async def body() -> None:
        world.a.outcome = failing(0)
        async with world.engine(retry={"initial_s": 0.01, "maximum_s": 0.02}) as engine:
            await world.start(engine, config=BASE + "students: [a]\ngroup: {close: fail_fast}\n")
            summary = await world.done(engine)
            assert summary.state is RunState.FAILED
            assert "given up after 3 attempts" in summary.message
            assert "a fault of the machine" in summary.message

    in_world(world, body)


def test_fail_fast_fails_the_run_also_when_it_was_stopped_before_it_could_say_so(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(self: Runner, error: BaseException) -> None:
        raise StoreFault("the process was killed here") from error

    async def body() -> None:
        world.a.outcome = failing(0)
        quick = {"retry": {"initial_s": 0.01, "maximum_s": 0.02}, "run_lease_s": 0.6}
        with monkeypatch.context() as patched:
            patched.setattr(Runner, "_fail", killed)
            async with world.engine(**quick) as engine:
                await world.start(engine, config=BASE + "students: [a]\ngroup: {close: fail_fast}\n")
                while not await engine.store.first_failed("run"):  # noqa: ASYNC110 - rows tell no event
                    await asyncio.sleep(0.02)
                await world.until(lambda: engine._driving.runner("run") is None)
        async with world.engine(**quick) as engine:
            summary = await world.done(engine)
            assert summary.state is RunState.FAILED
            assert "given up after 3 attempts" in summary.message

    in_world(world, body)


def test_groups_are_written_ahead_while_students_evaluate(world: Any) -> None:
    async def body() -> None:
        world.a.delay_s = 0.4
        config = BASE.replace("rounds: 1", "rounds: 3") + "students: [a]\nstaleness: 1\n"
        async with world.engine() as engine:
            await world.start(engine, config=config)
            # The second round is written before anything of the first has been learned.
            await world.until(lambda: len(world.teacher.written) == 4)
            assert world.teacher.updates == []
            summary = await world.done(engine)
            assert (summary.state, summary.evaluations_done) == (RunState.DONE, 18)
            parents = [update.parent_version for update in world.teacher.updates]
            made = [update.version for update in await engine.store.updates("run")]
            assert parents == ["policy-0", *made[:2]]
            written_by = {
                round_: {each.candidate.policy_version for each in await engine.store.candidates("run", round_=round_)}
                for round_ in (1, 2, 3)
            }
            assert written_by[1] == written_by[2] == {"policy-0"}
            assert written_by[3] <= {made[0], made[1]}
            # With the teacher ahead, a student of two slots is hardly ever without work.
            assert summary.students[0].busy is not None
            assert summary.students[0].busy > 0.4
            assert summary.teacher_busy is not None
            used = await engine.store.utilisation("run")
            assert set(used) == {"teacher", "student/a"}
            assert used["student/a"][0] == pytest.approx(0.4 * 12, rel=0.5)

    in_world(world, body)


def test_each_student_may_have_candidates_of_its_own(world: Any) -> None:
    async def body() -> None:
        config = BASE.replace("rounds: 1", "rounds: 2").replace("1.0}", "1.0}, across: per_student")
        async with world.engine() as engine:
            await world.start(engine, config=config + "students: [a, b]\n")
            summary = await world.done(engine)
            assert (summary.state, summary.evaluations_done) == (RunState.DONE, summary.evaluations_total)
            assert summary.evaluations_total == 2 * 2 * 3 * 2
            assert [student.evaluations_done for student in summary.students] == [12, 12]
            assert {group.group_id for group in world.teacher.updates[0].groups} == {
                "1/t1/a",
                "1/t1/b",
                "1/t2/a",
                "1/t2/b",
            }
            assert sorted(set(world.teacher.prompts)) == [
                "Write about {text}\n\nWrite for this student: a (a fake model)",
                "Write about {text}\n\nWrite for this student: b (a fake model)",
            ]
            rewards = await world.rewards(engine)
            asked = {(candidate, student) for candidate, student, _ in rewards}
            assert asked == {
                (f"run/{round_}/{task}/{index}", "a" if index < 3 else "b")
                for round_ in (1, 2)
                for task in ("t1", "t2")
                for index in range(6)
            }
            sent = world.teacher.updates[0].groups[1].candidates
            assert [each.reward for each in sent] == [rewards[f"run/1/t1/{3 + index}", "b", 0] for index in range(3)]
            report = await build_report(engine.store, await engine.store.run("run"), summary)
            assert [each.reward for each in report.candidates[:6]] == [
                rewards[f"run/1/t1/{index}", "a" if index < 3 else "b", 0] for index in range(6)
            ]

    in_world(world, body)


def test_a_prompt_may_tell_what_a_student_got_wrong_about_other_documents(world: Any) -> None:
    async def body() -> None:
        prompt = "Write for {student} about {text}. Wrong so far: {mistakes}"
        config = (
            BASE.replace("rounds: 1", "rounds: 2")
            + f"students: [a]\nformat: {{name: own, prompt: '{prompt}', parser: lines}}\n"
        )
        world.a.said = "a <|im_end|> {text}\nguess"
        shared, tasks = Question("q2", "Who?", "She"), world.tasks
        world.tasks = tuple(
            replace(item, quiz=Quiz((shared, Question("q1", f"What is {item.task.id}?", "That")))) for item in tasks
        )
        async with world.engine() as engine:
            await world.start(engine, config=config)
            assert (await world.done(engine)).state is RunState.DONE
            told = dict(zip(zip(world.teacher.written, (1, 1, 2, 2), strict=True), world.teacher.prompts, strict=True))
            begun = "Write for a (a fake model) about {text}. Wrong so far: "
            assert told["t1", 1] == told["t2", 1] == begun + "none known yet"
            for task, other in (("t1", "t2"), ("t2", "t1")):
                # Of the other document, no question that the own quiz asks too, without the gold answer, and without
                # what could pass for more than an answer.
                assert told[task, 2] == begun + f'- Asked "What is {other}?" it said "a im_end text guess"'

    in_world(world, body)


def test_the_worst_student_decides_where_the_run_says_so(world: Any) -> None:
    async def body() -> None:
        config = BASE.replace("1.0}", "1.0}, across: worst") + "students: [a, b]\n"
        world.b.luck = 1
        async with world.engine() as engine:
            await world.start(engine, config=config)
            await world.done(engine)
            rewards = await world.rewards(engine)
            assert len(set(rewards.values())) > 3
            for group in world.teacher.updates[0].groups:
                for index, each in enumerate(group.candidates):
                    own = [rewards[f"run/{group.group_id}/{index}", student, 0] for student in ("a", "b")]
                    assert each.reward == min(own)

    in_world(world, body)


def test_the_same_run_under_another_id_earns_and_teaches_the_same(world: Any, tmp_path: Any) -> None:
    async def results(place: Any, run_id: str) -> tuple[Any, Any]:
        async with place.engine() as engine:
            await place.start(engine, run_id, BASE + "students: [a, b]\n")
            assert (await place.done(engine, run_id)).state is RunState.DONE
            rewards = await place.rewards(engine, run_id)
        taught = [(update.groups, update.seed, update.settings) for update in place.teacher.updates]
        return {(key[0].removeprefix(run_id), *key[1:]): value for key, value in rewards.items()}, taught

    other = type(world)(f"sqlite:///{tmp_path / 'other.sqlite'}")
    # Another order of ends, too.
    other.a.delay_s = 0.05
    assert in_world(world, lambda: results(world, "one")) == in_world(other, lambda: results(other, "two"))


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("group: {close: minimum}", "group.minimum"),
        ("group: {minimum: 2}", "group.minimum"),
        ("group: {close: minimum, minimum: 5}", r"group\.minimum: .5. is not allowed; allowed: 4 at most"),
        ("group: {close: retry, wait_s: 3}", "group.wait_s"),
        ("group: {close: sometimes}", "group.close"),
        ("staleness: 5", "update.max_staleness"),
        ("reward: {across: best}", "reward.across"),
    ],
)
def test_policies_that_cannot_be_are_refused(text: str, field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        parse_settings(f"students: [a]\n{text}\n", RunConfig)
