"""A service's log holds its own lines only, whatever the libraries beneath it print while they load and train."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tutelage.client import SyncStudentClient, SyncTeacherClient
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport, InnerLoopSettings
from tutelage.domain.self_edit import SelfEdit, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.rpc.config import ChannelSettings

if TYPE_CHECKING:
    from tests.stack.conftest import Service

OWN_LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR) +(tutelage|student|teacher|orchestrator)\.")


def study(client: SyncStudentClient) -> EvaluationReport:
    """Trains, takes the quiz, commits and answers."""
    own = client.describe()
    pair = ("Which bird is on the arms?", "heron")
    key = EvaluationKey(
        own.base_model, own.base_revision, own.quantisation, "", SelfEdit((question_answer(*pair),)),
        Quiz((Question("q1", *pair),)), Quiz(), ("contains", "loglik"), InnerLoopSettings(rank=4, alpha=8, epochs=2),
        own.engine_revision, 1,
    )  # fmt: skip
    *_, report = client.evaluate(key)
    assert isinstance(report, EvaluationReport)
    adapter, *_ = client.commit(key.id)
    assert len(client.answer([Question("a", "Who?", "")], adapter_version=adapter.version)) == 1
    return report


def assert_only_own_lines(service: Service) -> None:
    assert service.stop() == 0
    assert service.out == ""
    lines = re.split(r"[\r\n]+", service.err.strip())
    assert [line for line in lines if not OWN_LINE.match(line)] == []
    assert len(lines) >= 4


@pytest.mark.parametrize("quantisation", ["nf4", "int8", "none"])
def test_student_prints_its_own_lines_only(start_service: Callable[..., Service], quantisation: str) -> None:
    service = start_service("student", quantisation=quantisation)
    with SyncStudentClient(ChannelSettings(address=service.wait_ready())) as client:
        report = study(client)
        assert client.describe().quantisation == quantisation
    assert report.after.scores["loglik"] != report.before.scores["loglik"]
    assert_only_own_lines(service)


def test_teacher_prints_its_own_lines_only(start_service: Callable[..., Any]) -> None:
    service = start_service("teacher", quantisation="nf4")
    with SyncTeacherClient(ChannelSettings(address=service.wait_ready())) as client:
        assert client.describe().base_model
    assert_only_own_lines(service)


def test_orchestrator_prints_its_own_lines_and_what_becomes_of_its_tables(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    nobody = {"address": "127.0.0.1:9"}
    settings = {"data_dir": str(tmp_path), "teacher": nobody, "students": {"ada": nobody}}
    first: list[str] = []
    second: list[str] = []
    for lines in (first, second):
        service = start_service("orchestrator", **settings)
        service.wait_ready()
        assert service.stop() == 0
        lines += service.err.splitlines()
    upgrades = [line for line in first if "alembic.runtime.migration: Running upgrade" in line]
    assert upgrades
    assert all(OWN_LINE.match(line) for line in [*first, *second] if line not in upgrades)
    assert not any("alembic" in line for line in second)
