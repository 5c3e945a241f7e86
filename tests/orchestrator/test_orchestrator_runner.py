"""Whole runs over real gRPC that nothing disturbs: begun once or refused, scored to the end, or cancelled."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import metrics
from orchestrator.group_rewards import group_rewards, recomputed
from orchestrator.rebuilding import rebuild
from orchestrator.report.answers import to_show
from orchestrator.report.data import RunReport
from orchestrator.report_builder import build_report
from orchestrator.run_events import Evaluate
from orchestrator.service import RENDERERS
from tests.orchestrator.world import in_world
from tutelage.domain.errors import AlreadyExists, Conflict, InvalidInput, NotFound, Unavailable
from tutelage.domain.policy import UpdateRequest
from tutelage.domain.run import ReportFormat, RunPhase, RunState
from tutelage.domain.task import Quiz


def test_a_run_ends_scored_updated_committed_and_reported(world: Any) -> None:
    async def body() -> None:
        async with world.engine() as engine:
            measured = overlaps_counted()
            await world.start(engine)
            summary = await world.done(engine)
            assert summary.state is RunState.DONE, summary.message
            assert summary.phase is RunPhase.ENDED
            reports = [row for row in await engine.store.evaluations("run") if row.state == "report"]
            assert overlaps_counted() - measured == len(reports) > 0
            # Of what was written, none of which is an answer.
            assert {row.outcome.answer_overlap for row in reports} == {0.0}
            # 2 rounds x 2 tasks x 4 candidates x 2 students x 2 seeds
            assert summary.evaluations_done == summary.evaluations_total == 64
            assert (summary.rejected, summary.unscored) == (4, 0)
            rewards = await world.rewards(engine)
            assert len(rewards) == 64
            # Candidates 1 and 2 are equal: one evaluation, the same reward for both; 3 was rejected by the parser.
            assert rewards["run/1/t1/1", "a", 0] == rewards["run/1/t1/2", "a", 0] is not None
            assert rewards["run/1/t1/3", "a", 0] is None
            rounds = [row for row in await engine.store.evaluations("run") if row.phase == "round"]
            assert len(rounds) == 2 * 2 * 2 * 2 * 2
            seeds = {world.a.keys[row.evaluation_id].seed for row in rounds if row.round == 1 and row.task_id == "t1"}
            assert len(seeds) == 2
            assert (world.a.most_running, world.b.most_running) == (2, 1) or world.a.most_running <= 2
            # The groups as the teacher got them, and the policy of the second round.
            first, second = world.teacher.updates
            assert [group.group_id for group in first.groups] == ["1/t1", "1/t2"]
            scored = first.groups[0].candidates
            assert scored[0].rollout == b"rollout t1 by policy-0 number 0"
            each = [rewards["run/1/t1/0", student, repeat] for student in "ab" for repeat in (0, 1)]
            assert scored[0].reward == pytest.approx(sum(each) / 4)
            assert scored[3].reward is None
            assert second.parent_version == (await engine.store.updates("run"))[0].version
            # Each student: task 1 over the base, task 2 evaluated again over what task 1 made.
            for student in await engine.list_students():
                assert len(student.previous_adapter_versions) == 2
                assert student.previous_adapter_versions[1] == ""
            # The same rewards from the stored reports alone, and others under other weights.
            run = await engine.store.run("run")
            machine = await rebuild(run, engine.store)
            outcomes = {
                Evaluate(row.round, row.task_id, row.edit, row.student, row.repeat): row.outcome
                for row in rounds
                if row.outcome is not None
            }
            asked, settings = machine.round_groups(1), run.config.reward_settings()
            again = group_rewards(machine, asked, recomputed(machine, asked, outcomes, settings), settings)
            learnt = [tuple(item.reward for item in group.candidates) for group in first.groups]
            assert [again[group] for group in asked] == [pytest.approx(each) for each in learnt]
            doubled = replace(settings, grader_weights={name: 2 * w for name, w in settings.grader_weights.items()})
            others = group_rewards(machine, asked, recomputed(machine, asked, outcomes, doubled), doubled)
            assert others[asked[0]][0] == pytest.approx(2 * learnt[0][0])
            commits = await engine.store.commits("run")
            assert [row["committed"] for row in commits] == [True] * 4
            assert commits[1]["parent_version"] == commits[0]["version"]
            report = await build_report(engine.store, await engine.store.run("run"), summary)
            assert len(report.candidates) == 16
            assert report.candidates[0].reward == pytest.approx(scored[0].reward)
            # What the teacher learned from, and nothing else.
            chosen = {(item.round, f"{item.task_id}/{item.index}") for item in report.candidates if item.chosen}
            assert chosen == {(number, best_of(update)) for number, update in enumerate((first, second), 1)}
            assert {phase.phase for phase in report.phases} == {"writing", "evaluating", "updating", "committing"}
            for render in RENDERERS.values():
                assert "".join(render(report))
            await without_the_answers(engine, summary, report)
            kinds = [event.kind for event in await engine.store.events("run")]
            assert kinds[0] == "run_started"
            assert kinds[-1] == "run_done"
            assert kinds.count("evaluation_done") == 32 + 2
            sequences = [event.sequence for event in await engine.store.events("run")]
            assert sequences == list(range(1, len(sequences) + 1))
            late = [event.sequence async for _, event in engine.watch("run", 50) if event]
            assert late == sequences[50:]

    in_world(world, body)


def overlaps_counted() -> float:
    """Reports of which the metric knows how much of the quiz their edit repeats."""
    (family,) = metrics.ANSWER_OVERLAP.collect()
    return sum(sample.value for sample in family.samples if sample.name.endswith("_count"))


def best_of(request: UpdateRequest) -> str:
    """Task and index of what the teacher of this world learns from."""
    each = [item for group in request.groups for item in group.candidates if item.reward is not None]
    return max(each, key=lambda item: item.reward or 0.0).candidate_id.partition("/")[2]


async def without_the_answers(engine: Any, summary: Any, report: RunReport) -> None:
    """A report of very many evaluations tells the same, and holds answers only where they are shown."""
    lean = await build_report(engine.store, await engine.store.run("run"), summary, answers_up_to=0)
    whole, tree = (json.loads("".join(RENDERERS[ReportFormat.JSON](each))) for each in (report, lean))
    assert (whole["answers"], tree["answers"]) == ("all", "of the best and the worst edits")
    assert tree["statistics"] == whole["statistics"]
    assert tree["report"]["phases"] == whole["report"]["phases"]
    assert [*RENDERERS[ReportFormat.CSV](lean)] == [*RENDERERS[ReportFormat.CSV](report)]
    shown = {(item.student, item.evaluation_id) for item in to_show(lean)}
    for candidate, other in zip(lean.candidates, report.candidates, strict=True):
        for evaluation, full in zip(candidate.evaluations, other.evaluations, strict=True):
            if (evaluation.student, evaluation.evaluation_id) in shown:
                assert evaluation == full
            elif evaluation.report is not None:
                assert not evaluation.report.after.answers
    assert 0 < len(shown) < 32


def test_bad_input_is_told_at_once_and_nothing_begins(world: Any) -> None:
    async def body() -> None:
        async with world.engine() as engine:
            twice = (world.tasks[0], world.tasks[0])
            config = (
                "students: [a, zoe]\nformat: haiku\ngraders: [contains, vibes]\ninner_loop: {rank: 4096}\n"
                "update: {algorithm: magic}\nreward: {grader_weights: {contains: 1}}\n"
            )
            with pytest.raises(InvalidInput) as caught:
                await engine.start_run("Bad Id", config, twice, Quiz())
            fields = {violation.field for violation in caught.value.violations}
            assert fields == {
                "run_id",
                "tasks[1].task.id",
                "config.students[1]",
                "config.format",
                "config.graders[1]",
                "config.inner_loop.rank",
                "config.update.algorithm",
            }
            with pytest.raises(InvalidInput, match=r"config\.candidates.*config\.colour"):
                await engine.start_run("run", "students: [a]\ncandidates: 0\ncolour: red\n", world.tasks, Quiz())
            with pytest.raises(InvalidInput, match=r"commit\.grader"):
                await engine.start_run(
                    "run",
                    "students: [a]\ngraders: [loglik]\nreward: {grader_weights: {loglik: 1}}\n",
                    world.tasks,
                    Quiz(),
                )
            with pytest.raises(InvalidInput, match=r"config\.update\.options\.wrong"):
                await engine.start_run("run", "students: [a]\nupdate: {options: {wrong: 1}}\n", world.tasks, Quiz())
            await world.b.down()
            with pytest.raises(Unavailable, match="student 'b' at 127"):
                await world.start(engine)
            assert await engine.list_runs() == []
            assert world.teacher.written == []
            with pytest.raises(NotFound):
                await engine.summary("run")

    in_world(world, body)


def test_the_same_run_attaches_and_another_under_its_id_is_refused(world: Any) -> None:
    async def body() -> None:
        async with world.engine() as engine:
            first = await engine.start_run("run", world.config, world.tasks, Quiz())
            second = await engine.start_run("run", world.config, world.tasks, Quiz())
            assert (first[1], second[1]) == (True, False)
            with pytest.raises(AlreadyExists):
                await engine.start_run("run", world.config + "name: other\n", world.tasks, Quiz())
            await world.done(engine)

    in_world(world, body)


def test_cancelling_stops_the_evaluations(world: Any) -> None:
    async def body() -> None:
        world.a.delay_s = world.b.delay_s = 5
        async with world.engine() as engine:
            await world.start(engine)
            await asyncio.sleep(0.5)
            summary = await engine.cancel_run("run")
            assert (summary.state, summary.phase) == (RunState.CANCELLED, RunPhase.ENDED)
            assert len(world.a.cancelled) == 2
            assert len(world.b.cancelled) == 1
            assert (await world.done(engine, timeout_s=5)).state is RunState.CANCELLED
            assert (engine.dispatcher.free("a"), engine.dispatcher.free("b")) == (2, 1)
        async with world.engine() as engine:
            assert (await engine.summary("run")).state is RunState.CANCELLED

    in_world(world, body)


def test_the_current_version_changes_by_compare_and_set(world: Any) -> None:
    async def body() -> None:
        async with world.engine() as engine:
            await world.start(engine)
            await world.done(engine)
            a = next(each for each in await engine.list_students() if each.name == "a")
            with pytest.raises(Conflict):
                await engine.set_current("a", "wrong", "")
            with pytest.raises(NotFound):
                await engine.set_current("a", a.current_adapter_version, "unknown")
            with pytest.raises(NotFound):
                await engine.set_current("zoe", "", "")
            back = await engine.set_current("a", a.current_adapter_version, a.previous_adapter_versions[0])
            assert back.previous_adapter_versions == a.previous_adapter_versions[1:]
            assert back.left_adapter_versions == (a.current_adapter_version,)

    in_world(world, body)
