"""A formula of a package makes rewards of reports; whatever goes wrong in it is no reward, and costs no report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.evaluating import reward_or_why
from orchestrator.group_rewards import recomputed
from orchestrator.rebuilding import rebuild
from orchestrator.run_config import RunConfig
from orchestrator.run_events import Evaluate
from tests.orchestrator.world import in_world
from tutelage import extensions
from tutelage.domain.evaluation import Answer, EvaluationReport, InnerLoopSettings, QuizResult, TrainingCost
from tutelage.domain.reward import Unscored
from tutelage.domain.run import RunState
from tutelage.extensions import REWARDS
from tutelage.settings import parse_settings

Formula = Callable[[Mapping[str, float]], Any]


def given(parts: Mapping[str, float]) -> Any:
    """What the test puts in its place."""
    return FORMULA[0](parts)


FORMULA: list[Formula] = []


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    points = (EntryPoint("own", f"{__name__}:given", REWARDS),)
    monkeypatch.setattr(extensions, "_points", lambda group: points if group == REWARDS else ())


def earned(formula: Formula, grader: str = "contains") -> Any:
    """By a report whose gain by `contains` is 0.5."""
    FORMULA[:] = [formula]

    def quiz(score: float) -> QuizResult:
        return QuizResult.of((Answer("1", "", {"contains": score}),))

    settings = {"students": ["a"], "graders": [grader], "commit": {"when": "never"}}
    config = parse_settings({**settings, "reward": {"formula": "own", "grader_weights": {grader: 1.0}}}, RunConfig)
    report = EvaluationReport(
        evaluation_id="e",
        before=quiz(0.25),
        after=quiz(0.75),
        retention_before=QuizResult(),
        retention_after=QuizResult(),
        effective_settings=InnerLoopSettings(),
        cost=TrainingCost(tokens=1000),
        answer_overlap=0.0,
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return reward_or_why(SimpleNamespace(config=config), report)  # type: ignore[arg-type]


def test_a_formula_makes_the_reward_or_why_the_parts() -> None:
    reward = earned(lambda parts: 2 * parts["gain_contains"])
    assert reward.value == pytest.approx(1.0)
    assert reward.parts == {"gain_contains": 0.5, "trained_kilotokens": 1.0}


def test_a_formula_that_takes_parts_away_leaves_those_that_are_stored() -> None:
    reward = earned(lambda parts: parts.pop("gain_contains"))  # type: ignore[attr-defined]
    assert reward.value == pytest.approx(0.5)
    assert reward.parts == {"gain_contains": 0.5, "trained_kilotokens": 1.0}


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (lambda parts: parts["gain_f1"], "KeyError: 'gain_f1'"),
        (lambda parts: 1 / 0, "ZeroDivisionError"),
        (lambda parts: [][1], "IndexError"),
        (lambda parts: None, "TypeError"),
        (lambda parts: "much", "ValueError"),
        (lambda parts: 1j, "TypeError"),
        (lambda parts: 10**400, "OverflowError"),
        (lambda parts: math.nan, "nan"),
        (lambda parts: -math.inf, "-inf"),
    ],
)
def test_a_formula_that_fails_is_named_with_what_it_did(formula: Formula, reason: str) -> None:
    found = earned(formula)
    assert isinstance(found, Unscored)
    assert "formula 'own'" in found.reason
    assert reason in found.reason


def test_a_grader_that_a_report_lacks_is_named_all_the_same() -> None:
    assert earned(lambda parts: 1.0, grader="f1") == Unscored("the report has no score by grader 'f1'")


def test_what_a_formula_fails_on_is_kept_and_can_be_scored_without_it(world: Any) -> None:
    FORMULA[:] = [lambda parts: [][1]]
    config = world.config.replace("rounds: 2", "rounds: 1") + "update: {when: never}\n"
    config = config.replace("{grader_weights: {contains: 1.0}}", "{formula: own, grader_weights: {contains: 1}}")

    async def whole() -> None:
        async with world.engine() as engine:
            await world.start(engine, config=config)
            summary = await world.done(engine)
            assert (summary.state, summary.unscored) == (RunState.DONE, 6), summary.message
            rows = await engine.store.evaluations("run")
            assert {(row.state, row.reward) for row in rows} == {("failed", None)}
            assert all("formula 'own' gives no reward: IndexError" in row.reason for row in rows)
            assert all(isinstance(row.outcome, EvaluationReport) for row in rows)
            assert not any(row["committed"] for row in await engine.store.commits("run"))
            run = await engine.store.run("run")
            machine = await rebuild(run, engine.store)
            outcomes = {
                Evaluate(row.round, row.task_id, row.edit, row.student, row.repeat): row.outcome
                for row in rows
                if row.outcome is not None
            }
            groups, settings = machine.round_groups(1), run.config.reward_settings()
            again = recomputed(machine, groups, outcomes, settings)
            assert all(not repeats.rewards for repeats in again.values())
            found = recomputed(machine, groups, outcomes, replace(settings, formula=""))
            assert all(len(repeats.rewards) == 2 for repeats in found.values())
            for other in (replace(settings, formula="gone"), replace(settings, grader_weights={"f1": 1.0})):
                assert not any(each.rewards for each in recomputed(machine, groups, outcomes, other).values())

    in_world(world, whole)


def test_a_run_whose_formula_is_gone_waits_until_its_package_is_back(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    FORMULA[:] = [lambda parts: parts["gain_contains"]]
    config = world.config.replace("{grader_weights: {contains: 1.0}}", "{formula: own, grader_weights: {contains: 1}}")

    async def whole() -> None:
        async with world.engine() as engine:
            await world.start(engine, config=config)
        with monkeypatch.context() as gone:
            gone.setattr(extensions, "_points", lambda group: ())
            async with world.engine() as engine:
                # Another orchestrator may have it.
                (waiting,) = await engine.list_runs()
                assert waiting.state is RunState.RUNNING
                assert "knows formula 'own'" in waiting.message
        async with world.engine() as engine:
            done = await world.done(engine)
            assert done.state is RunState.DONE, done.message
            assert done.unscored == 0

    in_world(world, whole)
