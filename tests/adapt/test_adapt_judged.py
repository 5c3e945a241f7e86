"""A gate whose grader is a judge: the version as it is stored is judged, too, before the student keeps it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.adapt_config import Recipe
from tests.orchestrator.judge_endpoint import Endpoint, settings
from tutelage.domain.evaluation import Answer, QuizResult
from tutelage.domain.run import RunState
from tutelage.domain.task import Quiz
from tutelage.settings import parse_settings
from tutelage.v1 import student_service_pb2 as student_pb
from tutelage.wire import evaluation as we


@pytest.fixture
def endpoint() -> Iterator[Any]:
    made = Endpoint()
    yield made
    made.close()


@pytest.mark.parametrize(("stored", "kept"), [("cobalt", True), ("crimson", False)])
def test_a_judge_looks_at_what_is_stored(world: Any, endpoint: Any, stored: str, kept: bool) -> None:
    endpoint.verdict = lambda prompt: (200, "yes" if "cobalt" in prompt else "no")
    plain = world.a.report

    def answered(text: str, key: Any) -> QuizResult:
        scores = {"contains": 0.0, "loglik": -1.0}
        return QuizResult.of(tuple(Answer(question.id, text, scores) for question in key.quiz.questions))

    def told(key: Any) -> Any:
        # The report is what was evaluated; a commit answers with `reports`, which is what the version as stored says.
        made = dataclasses.replace(plain(key), before=answered("crimson", key), after=answered("cobalt", key))
        world.a.reports[key.id] = dataclasses.replace(made, after=answered(stored, key))
        return made

    async def evaluate(request: Any, context: Any) -> Any:
        key = we.evaluation_key_from_wire(request.key)
        world.a.keys[key.id] = key
        world.a.held.add(key.id)
        outcome = we.evaluation_outcome_to_wire(told(key))
        yield student_pb.EvaluateResponse(evaluation_id=key.id, outcome=outcome)

    world.a.Evaluate = evaluate
    values = {"students": ["a"], "candidates": 1, "policy": "initial", "judges": ["gpt"], "gate": {"grader": "gpt"}}
    recipe = parse_settings(values, Recipe)

    async def body() -> None:
        await world.up()
        judge = settings(endpoint, attempts=1).model_dump()
        async with world.engine(judges={"gpt": judge}) as engine:
            await engine.start_run("run", recipe.run_yaml("judged"), world.tasks[:1], Quiz())
            assert (await world.done(engine)).state is RunState.DONE
            (row,) = await engine.store.commits("run")
            assert bool(row["committed"]) is kept
            if kept:
                assert row["quiz_after"].scores["gpt"] == 1.0
            else:
                assert "as stored, gain +0.0000 on gpt" in row["reason"]
        await world.down()

    asyncio.run(body())
