"""A teacher that writes questions when it is asked for a quiz, and answers prompts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import Candidate
from tutelage.domain.self_edit import SelfEdit, question_answer
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.wire import policy as wp

TEXT = "The Orrin lamp burns whale wax and is painted green. It was hung in 1347 by the salt traders of Skarn."
ANSWERS = {"burn": "It burns whale wax.", "When": "In 1347, I think.", "Who": "Salt traders did."}


def let_ask(world: Any) -> Any:
    """The world, with a teacher that writes questions when it is asked for a quiz; `seen` are the prompts' tasks.

    It knows what is in `world.known`, finds in a text what is not in `world.lost`, and notes each call in `asked`. It
    refuses to write about tasks in `world.refused`, and breaks by what `world.breaks` has left for a task, or under
    `answers` for its answers: after the first one. There it also waits for what `world.meanwhile` does, given the task.
    """
    write = world.teacher.WriteSelfEdits
    world.seen = []
    world.asked = []
    world.known, world.lost, world.refused = set(), set(), set()
    world.breaks = {}

    async def nothing(task_id: str) -> None:
        return None

    world.meanwhile = nothing

    async def answered(request: Any, context: Any) -> AsyncIterator[Any]:
        world.asked.append(request)
        # In any order.
        for index, prompt in reversed(list(enumerate(request.prompts))):
            question = prompt.rpartition("Question: ")[2]
            (name,) = (name for name in ANSWERS if name in question)
            says = name not in world.lost if TEXT in prompt else name in world.known
            yield teacher_pb.AnswerPromptsResponse(index=index, text=ANSWERS[name] if says else "Nobody knows.")
            if world.breaks.get("answers"):
                raise world.breaks["answers"].pop()

    world.teacher.AnswerPrompts = answered

    async def written(request: Any, context: Any) -> AsyncIterator[Any]:
        if request.format.name != "quiz":
            async for each in write(request, context):
                yield each
            return
        if request.task.id in world.refused:
            raise InvalidInput.of("task.document.text", "9000 tokens", "at most 512")
        world.seen.append((request.task.id, request.policy_version))
        pairs = [("What does the lamp burn?", "whale wax"), ("When was it hung there?", "1347")]
        if request.task.id == "lamp":
            pairs.append(("Who was it that hung it?", "salt traders"))
        for index in range(request.candidates):
            edit = SelfEdit(tuple(question_answer(*pair) for pair in pairs[index::2]))
            candidate = Candidate(index, request.policy_version, "quiz", "text", edit, b"", 5, index)
            if edit.documents:
                yield teacher_pb.WriteSelfEditsResponse(candidate=wp.candidate_to_wire(candidate))
            await world.meanwhile(request.task.id)
            if world.breaks.get(request.task.id):
                raise world.breaks[request.task.id].pop()

    world.teacher.WriteSelfEdits = written
    return world
