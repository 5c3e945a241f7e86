"""What teacher and students would refuse is asked before a run begins, and holds none up when nobody can say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import yaml

from orchestrator.adapt_config import AdaptConfig
from orchestrator.student_profile import LONGEST
from tests.orchestrator.world import in_world
from tutelage.domain.errors import Exhausted, FieldViolation, InvalidInput, Unavailable
from tutelage.domain.run import RunState
from tutelage.domain.task import DocumentTask, Question, Quiz
from tutelage.settings import parse_settings
from tutelage.v1 import student_service_pb2 as student_pb
from tutelage.v1 import teacher_service_pb2 as teacher_pb

RETENTION = Quiz((Question("r1", "Capital of France?", "Paris"),))


class Asked:
    """Answers the checks of a fake service, and remembers what they asked."""

    def __init__(self, response: Any, refusal: Exception | None = None) -> None:
        self._response, self.refusal = response, refusal
        self.messages: list[list[Any]] = []

    async def answer(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        self.messages.append([message async for message in request_iterator])
        if self.refusal is not None:
            raise self.refusal
        return self._response


def asked_of(world: Any, **refusals: Exception) -> dict[str, Asked]:
    """Has teacher, a and b answer the checks; a refusal by the name of who makes it."""
    made = {"teacher": Asked(teacher_pb.CheckWritingResponse(), refusals.get("teacher"))}
    world.teacher.CheckWriting = made["teacher"].answer
    for name in ("a", "b"):
        made[name] = Asked(student_pb.CheckEvaluationsResponse(), refusals.get(name))
        getattr(world, name).CheckEvaluations = made[name].answer
    return made


def in_engine(world: Any, body: Callable[[Any], Any]) -> None:
    async def whole() -> None:
        await world.up()
        try:
            async with world.engine() as engine:
                await body(engine)
        finally:
            await world.down()

    asyncio.run(asyncio.wait_for(whole(), 120))


def refused(*fields: str) -> InvalidInput:
    return InvalidInput([FieldViolation(field, f"value of {field}", "other things") for field in fields])


def test_all_refusals_are_told_at_once_by_the_fields_of_the_run(world: Any) -> None:
    made = asked_of(
        world,
        teacher=refused("candidates", "sampling.max_new_tokens", "format.prompt", "tasks[1].task.document.text"),
        a=refused("settings.target_modules", "settings.adapt_last_layers", "quizzes[1].questions[0].text"),
        b=refused("retention_quiz.questions[0].text"),
    )

    async def body(engine: Any) -> None:
        with pytest.raises(InvalidInput) as caught:
            await engine.start_run("run", world.config + "judges: [nobody]\n", world.tasks, RETENTION)
        found = {item.field: item for item in caught.value.violations}
        assert found.keys() == {
            "config.judges[0]",
            "config.candidates",
            "config.sampling.max_new_tokens",
            "config.format.prompt",
            "tasks[1].task.document.text",
            "config.inner_loop.target_modules",
            "config.inner_loop.adapt_layers",
            "tasks[1].quiz.questions[0].text",
            "retention_quiz.questions[0].text",
        }
        assert found["config.candidates"].value == "value of candidates"
        assert found["retention_quiz.questions[0].text"].allowed == "other things (student 'b')"
        with pytest.raises(InvalidInput):
            await engine.plan_run("run", world.config, world.tasks, RETENTION)
        assert await engine.list_runs() == []

    in_engine(world, body)
    header, *tasks = made["teacher"].messages[0]
    assert (header.header.candidates, header.header.format.name) == (4, "implications")
    assert [message.task.id for message in tasks] == ["t1", "t2"]
    header, *quizzes = made["a"].messages[0]
    assert header.header.retention_quiz.questions[0].answer == "Paris"
    assert [len(message.quiz.questions) for message in quizzes] == [2, 2]


@pytest.mark.parametrize(("rounds", "lines"), [(1, 0), (2, 3)])
def test_a_prompt_is_measured_with_the_mistakes_that_later_rounds_tell(world: Any, rounds: int, lines: int) -> None:
    made = asked_of(world, teacher=refused("tasks[1].task.document.text"))

    async def body(engine: Any) -> None:
        own = {"name": "own", "parser": "lines", "prompt": "{text} Wrong so far:\n{mistakes}"}
        settings = {**yaml.safe_load(world.config), "format": own, "rounds": rounds}
        with pytest.raises(InvalidInput):
            await engine.start_run("run", yaml.safe_dump(settings), world.tasks, Quiz())

    in_engine(world, body)
    prompt = made["teacher"].messages[0][0].header.format.prompt
    told = [line for line in prompt.splitlines() if line.startswith("- Asked")]
    assert len(told) == lines
    assert all(len(line) > 2 * LONGEST for line in told)


@pytest.mark.parametrize(
    ("prompt", "strange"),
    [
        ("{titel}\n\n{text}", "{titel}"),
        ("{document} is by {Title}, not by {document}.", "{document}, {Title}"),
        ("{ text } {task.text} {überschrift}", "{ text }, {task.text}, {überschrift}"),
        (r"As \frac{mass}{volume}, {title}{txt}", "{txt}"),
    ],
)
def test_a_word_in_braces_that_nobody_replaces_is_refused_with_those_that_are(
    world: Any, prompt: str, strange: str
) -> None:
    async def body(engine: Any) -> None:
        own = {"name": "own", "parser": "lines", "prompt": prompt}
        settings = yaml.safe_dump({**yaml.safe_load(world.config), "format": own})
        for call in (engine.plan_run, engine.start_run):
            with pytest.raises(InvalidInput) as caught:
                await call("run", settings, world.tasks, Quiz())
            allowed = "of the words in braces {title}, {text}, {student}, {mistakes}; any other without braces"
            assert caught.value.violations == (FieldViolation("config.format.prompt", strange, allowed),)

    in_engine(world, body)
    with pytest.raises(InvalidInput, match=r"format\.prompt: .* of the words in braces"):
        parse_settings({"students": ["a"], "format": {"name": "own", "parser": "lines", "prompt": prompt}}, AdaptConfig)


@pytest.mark.parametrize(
    "braces",
    [
        '{"learning_rate": 0.001, "more": {"a": [{"b": "c"}]}} {a: 1} {} { } {0} {',
        r"\frac{a}{b} x_{ab} \frac{\text{mass}}{volume} \begin{align*} \sum_{i=start}^{end} \sqrt[three]{ab} \{ab\}",
        "{title} {text} {student} {mistakes} the set {n}, at most {2,3}",
    ],
    ids=["JSON", "LaTeX", "places"],
)
def test_other_braces_may_stand_in_a_prompt(world: Any, braces: str) -> None:
    async def body(engine: Any) -> None:
        own = {"name": "own", "parser": "lines", "prompt": f"{braces} {{text}}"}
        settings = yaml.safe_dump({**yaml.safe_load(world.config), "format": own})
        assert await engine.plan_run("run", settings, world.tasks, Quiz())

    in_engine(world, body)


def test_a_price_of_forgetting_needs_a_quiz_that_measures_it(world: Any) -> None:
    asked_of(world)

    async def body(engine: Any) -> None:
        settings = yaml.safe_load(world.config)
        settings["reward"] = {**settings.get("reward", {}), "retention_penalty": 0.5, "retention_grader": "contains"}
        with pytest.raises(InvalidInput, match="0 without a retention quiz") as caught:
            await engine.start_run("run", yaml.safe_dump(settings), world.tasks, Quiz())
        assert [item.field for item in caught.value.violations] == ["config.reward.retention_penalty"]
        assert await engine.plan_run("run", yaml.safe_dump(settings), world.tasks, RETENTION)

    in_engine(world, body)


def test_a_least_retention_needs_a_quiz_that_measures_it(world: Any) -> None:
    asked_of(world)

    async def body(engine: Any) -> None:
        settings = yaml.safe_load(world.config) | {"reward": {"retention_grader": "contains"}}
        settings["commit"] = {**settings.get("commit", {}), "min_retention": 0.5}
        with pytest.raises(InvalidInput, match="nothing without a retention quiz") as caught:
            await engine.start_run("run", yaml.safe_dump(settings), world.tasks, Quiz())
        assert [item.field for item in caught.value.violations] == ["config.commit.min_retention"]
        assert await engine.plan_run("run", yaml.safe_dump(settings), world.tasks, RETENTION)

    in_engine(world, body)


def test_a_task_is_named_by_its_place_beside_malformed_ones(world: Any) -> None:
    asked_of(world, teacher=refused("tasks[1].task.document.text"))

    async def body(engine: Any) -> None:
        malformed = [FieldViolation(f"tasks[{place}].task.id", "", "an id") for place in (0, 2)]
        with pytest.raises(InvalidInput) as caught:
            await engine.start_run("run", world.config, world.tasks, Quiz(), malformed)
        assert [item.field for item in caught.value.violations] == [
            "tasks[0].task.id",
            "tasks[2].task.id",
            "tasks[3].task.document.text",
        ]

    in_engine(world, body)


def test_what_is_known_to_be_wrong_is_told_once(world: Any) -> None:
    asked_of(world, teacher=refused("tasks[0].task.document.text"), a=refused("settings.rank"), b=refused())

    async def body(engine: Any) -> None:
        empty = replace(world.tasks[0], task=replace(world.tasks[0].task, content=DocumentTask("", "")))
        with pytest.raises(InvalidInput) as caught:
            await engine.start_run("run", "students: [a]\ninner_loop: {rank: 9999}\n", [empty], Quiz())
        assert [item.field for item in caught.value.violations] == [
            "tasks[0].task.document.text",
            "config.inner_loop.rank",
        ]
        assert "task 't1'" in caught.value.violations[0].allowed

    in_engine(world, body)


def test_each_student_that_is_written_for_alone_has_its_own_prompt_checked(world: Any) -> None:
    made = asked_of(world)

    async def body(engine: Any) -> None:
        config = world.config.replace("reward: {", "reward: {across: per_student, ")
        await engine.plan_run("run", config, world.tasks, Quiz())

    in_engine(world, body)
    prompts = [messages[0].header.format.prompt for messages in made["teacher"].messages]
    assert ["a (a fake" in prompts[0], "b (a fake" in prompts[1], len(prompts)] == [True, True, 2]


def test_services_that_cannot_say_hold_no_run_up(world: Any) -> None:
    made = asked_of(world, teacher=Unavailable("later"), a=Exhausted("full"), b=Unavailable("later"))

    async def body(engine: Any) -> None:
        await world.start(engine)
        assert (await world.done(engine)).state is RunState.DONE

    in_engine(world, body)
    assert all(asked.messages for asked in made.values())


def test_a_run_starts_with_a_student_that_has_just_come_up(world: Any) -> None:
    async def body() -> None:
        # Its port is known from now on.
        await world.a.down()
        async with world.engine() as engine:
            # As long as a model takes to load: the orchestrator has tried in vain, and tries less and less often.
            await asyncio.sleep(5.5)
            await world.a.up()
            await world.start(engine)

    in_world(world, body)
