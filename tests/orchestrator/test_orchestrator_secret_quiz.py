"""No question of a document and no gold answer at all reaches the teacher, whatever the prompt asks for."""

from __future__ import annotations

import asyncio
from typing import Any

from tutelage.domain.run import RunState, TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task

CONFIG = """
students: [a, b]
candidates: 4
rounds: 2
seed: 7
reward: {grader_weights: {contains: 1.0}, across: per_student}
deadlines: {evaluation_s: 20, attempts: 6}
format: {name: own, parser: lines, prompt: "{text} for {student}, who erred: {mistakes}"}
"""


def document(name: str) -> TaskWithQuiz:
    asked = Question(f"{name}-q", f"Which {name}asked?", f"{name}gold", f"{name}topic", (f"{name}alias",))
    return TaskWithQuiz(Task(name, DocumentTask(f"Title {name}", f"Text of {name}")), Quiz((asked,)))


def test_a_teacher_is_never_told_the_quiz_of_what_it_writes_about(world: Any) -> None:
    world.tasks = (document("north"), document("south"))

    async def body() -> None:
        await world.up()
        try:
            async with world.engine() as engine:
                await world.start(engine, config=CONFIG)
                assert (await world.done(engine)).state is RunState.DONE
        finally:
            await world.down()

    asyncio.run(asyncio.wait_for(body(), 200))
    assert len(world.teacher.requests) == 2 * 2 * 2
    for task, sent in zip(world.teacher.written, world.teacher.requests, strict=True):
        assert f"Text of {task}" in sent
        assert f"{task}asked" not in sent
        assert not any(secret in sent for secret in ("gold", "alias", "topic"))
    # What a student got wrong is told of the other document.
    assert sum("northasked" in sent or "southasked" in sent for sent in world.teacher.requests) == 2 * 2
    assert not any(secret in repr(update) for update in world.teacher.updates for secret in ("gold", "asked", "alias"))
