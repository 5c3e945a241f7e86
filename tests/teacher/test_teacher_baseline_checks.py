"""A teacher that does not learn says before a run what it would refuse to write, and what is wrong with its file."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from teacher.baseline_service import BaselineService, baseline_of
from teacher.baselines import Replay
from teacher.config import TeacherSettings
from teacher.update_request import check_request
from tests.teacher.test_teacher_baselines import served
from tutelage.client import TeacherClient
from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import (
    CandidateGroup,
    Format,
    Parser,
    Sampling,
    ScoredCandidate,
    UpdateRequest,
    UpdateResult,
    UpdateSettings,
)
from tutelage.domain.task import DocumentTask, Task
from tutelage.v1 import teacher_service_pb2 as pb
from tutelage.wire.policy import format_to_wire, sampling_to_wire
from tutelage.wire.task import task_to_wire

LINES = Format("own", "Notes on {text}", Parser.LINES)
VELM = Task("velm", DocumentTask("Velm", "Velm is a town."))
ORRIN = Task("orrin", DocumentTask("Orrin", "Orrin is a village."))


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps({"task_id": "velm", "text": "Velm is old."}))
    return path


def refused(settings: TeacherSettings, *tasks: Task) -> dict[str, str]:
    """What is allowed in each refused field; nothing where all is taken."""
    header = pb.CheckWritingHeader(
        format=format_to_wire(LINES), candidates=2, sampling=sampling_to_wire(Sampling(max_new_tokens=8))
    )

    async def requests() -> AsyncIterator[pb.CheckWritingRequest]:
        yield pb.CheckWritingRequest(header=header)
        for task in tasks:
            yield pb.CheckWritingRequest(task=task_to_wire(task))

    context: Any = None
    try:
        asyncio.run(BaselineService(settings, baseline_of(settings)).CheckWriting(requests(), context))
    except InvalidInput as error:
        return {item.field: item.allowed for item in error.violations}
    return {}


def test_a_task_that_a_replay_lacks_is_named_before_the_run(edits: Path) -> None:
    settings = TeacherSettings(backend="replay", replay_file=edits)
    assert refused(settings, VELM) == {}
    found = refused(settings, VELM, ORRIN)
    assert found.keys() == {"tasks[1].task.id"}
    assert "edits.jsonl" in found["tasks[1].task.id"]


def test_a_line_separator_inside_a_text_does_not_end_its_line(edits: Path) -> None:
    text = "Velm is old.\u2028It has\u0085three\x0bmills."
    line = json.dumps({"task_id": "velm", "text": text}, ensure_ascii=False).encode()
    edits.write_bytes(line + b"\r\n\r\n")

    async def written() -> list[str]:
        return [candidate.text async for candidate in Replay(edits).write(VELM, LINES, 2, Sampling(), 1)]

    assert asyncio.run(written()) == [text, text]
    edits.write_bytes(line + b"\n{")
    with pytest.raises(InvalidInput, match=r"edits\.jsonl, line 2"):
        Replay(edits)


def test_a_file_with_a_byte_order_mark_is_read_as_documents_are(edits: Path) -> None:
    edits.write_bytes(b"\xef\xbb\xbf" + edits.read_bytes())
    assert refused(TeacherSettings(backend="replay", replay_file=edits), VELM) == {}


def test_json_that_is_nested_too_deeply_is_refused_by_its_line(edits: Path) -> None:
    edits.write_text('{"task_id": "velm", "text": "Velm is old."}\n' + "[" * 200_000)
    with pytest.raises(InvalidInput, match=r"edits\.jsonl, line 2"):
        Replay(edits)


def test_candidates_that_nobody_scored_are_counted_as_by_a_teacher_that_learns() -> None:
    def counted() -> list[float]:
        name = "tutelage_teacher_update_candidates_total"
        return [REGISTRY.get_sample_value(name, {"outcome": each}) or 0 for each in ("kept", "passed_over", "unscored")]

    async def use(client: TeacherClient) -> None:
        version = (await client.describe()).initial_policy_version
        scores = {"a": 0.5, "b": None, "c": 0.1}
        group = CandidateGroup("g", tuple(ScoredCandidate(name, b"", reward) for name, reward in scores.items()))
        before = counted()
        asked = UpdateRequest(version, "grpo", UpdateSettings(), (group,), 1, "run", 1)
        *_, result = [event async for event in client.update_policy(asked)]
        assert isinstance(result, UpdateResult)
        assert (result.kept_candidates, result.unscored_candidates) == (0, 1)
        assert [after - earlier for after, earlier in zip(counted(), before, strict=True)] == [0, 2, 1]

    served(TeacherSettings(backend="passage"), use)


def test_ids_of_many_candidates_are_checked_at_once() -> None:
    candidates = tuple(ScoredCandidate(f"c{number}", b"", 0.5) for number in range(20_000))
    groups = (CandidateGroup("g", (*candidates, candidates[7])),)
    began = time.process_time()
    with pytest.raises(InvalidInput, match=r"candidate_id: 'c7' is not allowed"):
        check_request(UpdateRequest("p", "rest_em", UpdateSettings(), groups, 1, "run", 1), 256)
    # One at a time against all others it took five seconds.
    assert time.process_time() - began < 1
