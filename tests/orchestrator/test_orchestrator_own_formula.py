"""A formula of a package makes rewards of reports; whatever goes wrong in it is a failure, and never a reward."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.evaluating import scored
from orchestrator.run_config import RunConfig
from tutelage import extensions
from tutelage.domain.evaluation import Answer, EvaluationReport, Failure, InnerLoopSettings, QuizResult, TrainingCost
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


def outcome(formula: Formula, grader: str = "contains") -> tuple[Any, Any]:
    """Of a report whose gain by `contains` is 0.5."""
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
    return scored(SimpleNamespace(config=config), report)  # type: ignore[arg-type]


def test_a_formula_makes_the_reward_of_the_parts() -> None:
    ended, reward = outcome(lambda parts: 2 * parts["gain_contains"])
    assert isinstance(ended, EvaluationReport)
    assert reward.value == pytest.approx(1.0)
    assert reward.parts == {"gain_contains": 0.5, "trained_kilotokens": 1.0}


def test_a_formula_that_takes_parts_away_leaves_those_that_are_stored() -> None:
    _, reward = outcome(lambda parts: parts.pop("gain_contains"))  # type: ignore[attr-defined]
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
def test_a_formula_that_fails_is_a_failure_that_names_it(formula: Formula, reason: str) -> None:
    ended, reward = outcome(formula)
    assert isinstance(ended, Failure)
    assert reward is None
    assert not ended.retryable
    assert "formula 'own'" in ended.message
    assert reason in ended.message


def test_a_grader_that_a_report_lacks_is_named_all_the_same() -> None:
    ended, reward = outcome(lambda parts: 1.0, grader="f1")
    assert ended == Failure("the report has no score by grader 'f1'", retryable=False)
    assert reward is None


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

    async def in_world() -> None:
        await world.up()
        try:
            await whole()
        finally:
            await world.down()

    asyncio.run(asyncio.wait_for(in_world(), 200))
