"""Whether a teacher would write for the tasks of a run: refused before the first candidate is paid for, not sampled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.policy import Format, Sampling
from tutelage.domain.task import Task
from tutelage.v1 import teacher_service_pb2 as pb
from tutelage.wire.policy import format_from_wire, sampling_from_wire
from tutelage.wire.task import task_from_wire

CheckHeader = Callable[[Format, int, Sampling], None]
CheckTask = Callable[[Task, Format, int], None]
"""Task, format and most new tokens; on a thread."""


async def check_writing(
    requests: AsyncIterator[pb.CheckWritingRequest], check_header: CheckHeader, check_task: CheckTask | None = None
) -> pb.CheckWritingResponse:
    """InvalidInput with all that the two checks refuse; a task's fields are named below `tasks[i]`."""
    given: tuple[Format, int] | None = None
    wrong: list[FieldViolation] = []
    count = 0
    async for request in requests:
        part = request.WhichOneof("part")
        if (given is None) != (part == "header"):
            raise InvalidInput.of("part", part or "nothing", "one header, then tasks")
        try:
            if part == "header":
                header = request.header
                format, sampling = format_from_wire(header.format), sampling_from_wire(header.sampling)
                given = (format, sampling.max_new_tokens)
                check_header(format, header.candidates, sampling)
            else:
                task = task_from_wire(request.task)
                if check_task is not None and given is not None:
                    await asyncio.to_thread(check_task, task, *given)
        except InvalidInput as error:
            if given is None:
                raise
            wrong += error.violations if part == "header" else _of_task(count, error)
            if part == "header" and any(item.field == "sampling.max_new_tokens" for item in wrong):
                # Which tasks would fit is not known then: only those that never would are named.
                given = (given[0], 1)
        count += part == "task"
    if given is None:
        raise InvalidInput.of("part", "nothing", "one header, then tasks")
    if wrong:
        raise InvalidInput(wrong)
    return pb.CheckWritingResponse()


def _of_task(index: int, error: InvalidInput) -> list[FieldViolation]:
    return [FieldViolation(f"tasks[{index}].{item.field}", item.value, item.allowed) for item in error.violations]
