"""A teacher says before a run what it would refuse to write, and samples nothing for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from teacher.config import TeacherSettings
from teacher.engine import Writer
from teacher.policies import PolicyStore
from teacher.writing_check import check_writing
from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import Format, Parser, Sampling
from tutelage.domain.task import DocumentTask, Task
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.v1 import teacher_service_pb2 as pb
from tutelage.wire.policy import format_to_wire, sampling_to_wire
from tutelage.wire.task import task_to_wire

FORMAT = Format("own", "{title}: {text}", Parser.LINES)
SHORT = Task("short", DocumentTask("Velm", "Velm is a town."))
LONG = Task("long", DocumentTask("Velm", "Velm is a town. " * 28))
"""448 of the 512 bytes that the tiny model reads at once, one a token."""
TOO_LONG = Task("too-long", DocumentTask("Velm", "Velm is a town. " * 40))


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    folder: Path = tmp_path_factory.mktemp("teacher")
    model = str(write_tiny_model(folder / "model"))
    loaded = load_model(model, quantisation="none", device="cpu", threads=1)
    settings = TeacherSettings(model=model, threads=1, data_dir=folder)
    return Writer(loaded, PolicyStore(folder / "policies", loaded.revision), settings)


def header(candidates: int = 4, max_new_tokens: int = 12, format: Format = FORMAT) -> pb.CheckWritingRequest:
    sampling = sampling_to_wire(Sampling(max_new_tokens=max_new_tokens))
    message = pb.CheckWritingHeader(format=format_to_wire(format), candidates=candidates, sampling=sampling)
    return pb.CheckWritingRequest(header=message)


def refused(writer: Writer, *messages: pb.CheckWritingRequest) -> dict[str, tuple[str, str]]:
    """Value and allowed of each refused field; nothing where all is taken."""

    async def requests() -> AsyncIterator[pb.CheckWritingRequest]:
        for message in messages:
            yield message

    try:
        asyncio.run(check_writing(requests(), writer.check, writer.check_task))
    except InvalidInput as error:
        return {item.field: (item.value, item.allowed) for item in error.violations}
    return {}


def of(*tasks: Task) -> list[pb.CheckWritingRequest]:
    return [pb.CheckWritingRequest(task=task_to_wire(task)) for task in tasks]


def test_what_can_be_written_is_taken(writer: Writer) -> None:
    assert refused(writer, header(64), *of(SHORT, SHORT, LONG)) == {}


def test_each_document_that_is_too_long_is_named_with_its_tokens_and_the_limit(writer: Writer) -> None:
    found = refused(writer, header(), *of(TOO_LONG, SHORT, TOO_LONG))
    assert found.keys() == {"tasks[0].task.document.text", "tasks[2].task.document.text"}
    value, allowed = found["tasks[2].task.document.text"]
    tokens = len(writer.prompt_of(TOO_LONG, FORMAT))
    assert value == f"a prompt of {tokens} tokens for task 'too-long' and 12 new ones"
    assert allowed.startswith(f"at most {writer.loaded.context_length} tokens together")


def test_all_is_told_at_once(writer: Writer) -> None:
    found = refused(writer, header(100, 8192), *of(SHORT, LONG, TOO_LONG))
    # LONG may be right once fewer new tokens are asked for.
    assert found.keys() == {"candidates", "sampling.max_new_tokens", "tasks[2].task.document.text"}
    assert found["candidates"] == ("100", "1 to 64")
    assert found["sampling.max_new_tokens"] == ("8192", "1 to 2048")


def test_new_tokens_count_towards_the_context(writer: Writer) -> None:
    assert refused(writer, header(max_new_tokens=300), *of(SHORT, LONG)).keys() == {"tasks[1].task.document.text"}


def test_one_header_comes_first(writer: Writer) -> None:
    assert refused(writer).keys() == {"part"}
    assert refused(writer, *of(SHORT)).keys() == {"part"}
    assert refused(writer, header(), header()).keys() == {"part"}
    assert refused(writer, pb.CheckWritingRequest(header=pb.CheckWritingHeader())).keys() >= {"format.name"}
