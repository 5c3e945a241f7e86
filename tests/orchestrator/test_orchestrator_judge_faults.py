"""Judges that fail: a report is kept whatever they do, and a reward is lost only with what it hangs on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator import metrics
from orchestrator.group_rewards import recomputed
from orchestrator.rebuilding import rebuild
from orchestrator.report.failures import problems
from orchestrator.report_builder import build_report
from orchestrator.run_events import Evaluate
from orchestrator.service import RENDERERS
from tests.orchestrator.fake_services import FakeStudent
from tests.orchestrator.judge_endpoint import Endpoint, settings
from tests.orchestrator.world import in_world
from tutelage.domain.evaluation import EvaluationReport, QuizResult
from tutelage.domain.run import RunState

BASE = """
students: [a, b]
candidates: 4
rounds: 1
seed: 7
evaluation_seeds: 4
judges: [gpt]
update: {when: never}
deadlines: {evaluation_s: 20, attempts: 2}
"""
REWARDED = BASE + "reward: {grader_weights: {gpt: 1.0}}\ncommit: {when: never}\n"
INFORMED = BASE + "reward: {grader_weights: {contains: 1.0}}\ncommit: {when: never}\n"
GATED = BASE + "reward: {grader_weights: {contains: 1.0}}\ncommit: {when: end, grader: gpt}\n"
EACH = 2 * 2 * 4
"""Evaluations of a student: tasks x distinct edits x seeds."""


def away(_: str) -> tuple[int, str]:
    return 503, ""


def missing() -> float:
    """Reports that a judge did not grade."""
    return float(metrics.JUDGED.labels("missing")._value.get())


def outcomes_of(rows: Any) -> dict[Evaluate, Any]:
    return {Evaluate(row.round, row.task_id, row.edit, row.student, row.repeat): row.outcome for row in rows}


@pytest.mark.parametrize("config", [REWARDED, GATED], ids=["reward", "gate"])
def test_a_report_whose_judge_failed_is_kept_without_a_reward(world: Any, endpoint: Endpoint, config: str) -> None:
    endpoint.verdict = away

    async def body() -> None:
        before = missing()
        async with world.engine(judges={"gpt": settings(endpoint, attempts=1).model_dump()}) as engine:
            await world.start(engine, config=config)
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 6), summary.message
            rows = await engine.store.evaluations("run")
            assert len(rows) == 2 * EACH == missing() - before
            assert {(row.state, row.reward) for row in rows} == {("failed", None)}
            assert all("judge 'gpt'" in row.reason for row in rows)
            kept = [row.outcome for row in rows]
            assert all(isinstance(each, EvaluationReport) and "contains" in each.after.scores for each in kept)
            assert not any(row["committed"] for row in await engine.store.commits("run"))
            run = await engine.store.run("run")
            machine = await rebuild(run, engine.store)
            assert set(machine.results.values()) == {None}
            # What the students answered earns by another grader, without a student.
            by_contains = replace(run.config.reward_settings(), grader_weights={"contains": 1.0})
            found = recomputed(machine, machine.round_groups(1), outcomes_of(rows), by_contains)
            assert all(len(repeats.rewards) == 4 for repeats in found.values())
            report = await build_report(engine.store, run, summary)
            told = [each for each in problems(report) if each.kind == "evaluation failed"]
            assert told
            assert all("judge 'gpt'" in each.reason for each in told)
            for render in RENDERERS.values():
                assert "".join(render(report))

    in_world(world, body)


def test_a_judge_that_only_informs_costs_no_reward_and_is_asked_once(world: Any, endpoint: Endpoint) -> None:
    endpoint.verdict = away

    async def body() -> None:
        before = missing()
        async with world.engine(judges={"gpt": settings(endpoint, attempts=1).model_dump()}) as engine:
            await world.start(engine, config=INFORMED)
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 0)
            rows = await engine.store.evaluations("run")
            assert {(row.state, row.reason) for row in rows} == {("report", "")}
            assert all(row.reward is not None and row.attempts == 1 for row in rows)
            assert missing() - before == len(rows)

    in_world(world, body)


def test_a_commit_stands_without_the_judge_that_its_gate_does_not_ask(world: Any, endpoint: Endpoint) -> None:
    endpoint.verdict = away

    async def body() -> None:
        async with world.engine(judges={"gpt": settings(endpoint, attempts=1).model_dump()}) as engine:
            await world.start(engine, config=INFORMED.replace("commit: {when: never}", "commit: {when: end}"))
            assert (await world.done(engine)).state is RunState.DONE
            commits = await engine.store.commits("run")
            assert [(row["committed"], row["fault"]) for row in commits] == [(True, False)] * 4
            assert all("gpt" not in row["quiz_after"].scores for row in commits)

    in_world(world, body)


def test_the_rewards_of_a_run_follow_from_reports_of_which_some_have_no_verdict(world: Any, endpoint: Endpoint) -> None:
    def answering(key: Any) -> EvaluationReport:
        whole: EvaluationReport = FakeStudent.report(world.a, key)
        text = "hm" if key.self_edit.documents[0].text.endswith("number 0") else "text"
        return replace(whole, after=QuizResult.of(tuple(replace(each, text=text) for each in whole.after.answers)))

    endpoint.verdict = lambda prompt: (503, "") if '"hm"' in prompt else (200, "yes")
    config = REWARDED.replace("gpt: 1.0", "gpt: 1.0, contains: 1.0").replace("[a, b]", "[a]")

    async def body() -> None:
        world.a.outcome = answering
        async with world.engine(judges={"gpt": settings(endpoint, attempts=1).model_dump()}) as engine:
            await world.start(engine, config=config)
            assert (await world.done(engine)).state is RunState.DONE
            rows = await engine.store.evaluations("run")
            assert sorted(row.state for row in rows) == ["failed"] * (EACH // 2) + ["report"] * (EACH // 2)
            assert all(isinstance(row.outcome, EvaluationReport) for row in rows)
            run = await engine.store.run("run")
            machine = await rebuild(run, engine.store)
            again = recomputed(machine, machine.round_groups(1), outcomes_of(rows), run.config.reward_settings())
            for (group, edit, _), repeats in again.items():
                stored = [row.reward for row in rows if (row.task_id, row.edit) == (group.task, edit)]
                assert sorted(repeats.rewards) == pytest.approx(sorted(each for each in stored if each is not None))

    in_world(world, body)
