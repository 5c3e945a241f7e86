"""A student process over gRPC: every method, through the typed client."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tutelage.client import SyncStudentClient
from tutelage.domain.description import EvaluationProgress, EvaluationState
from tutelage.domain.errors import InvalidInput, NotFound, PreconditionFailed
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport, InnerLoopSettings
from tutelage.domain.self_edit import Directives, Rejection, SelfEdit, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.rpc.config import ChannelSettings

PROGRAM = """
import json, sys
from student.config import StudentSettings
from student.main import run
run(StudentSettings(**json.loads(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def served(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("served")
    ready = folder / "ready.json"
    settings = {
        "model": str(tiny_path),
        "quantisation": "none",
        "device": "cpu",
        "compute_dtype": "float32",
        "threads": 1,
        "slots": 2,
        "data_dir": str(folder / "data"),
        "max_new_tokens": 8,
        "server": {"metrics_port": 0, "ready_file": str(ready), "grace_s": 2},
    }
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, json.dumps(settings)])
    try:
        deadline = time.monotonic() + 120
        while not ready.exists():
            assert process.poll() is None, "the student ended"
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture
def client(served: dict[str, str]) -> Iterator[SyncStudentClient]:
    with SyncStudentClient(ChannelSettings(address=served["address"])) as client:
        yield client


def key_for(client: SyncStudentClient, **changes: Any) -> EvaluationKey:
    own = client.describe()
    pair = ("Which bird is on the arms?", "heron")
    key = EvaluationKey(
        base_model=own.base_model,
        base_revision=own.base_revision,
        quantisation=own.quantisation,
        adapter_version="",
        self_edit=SelfEdit((question_answer(*pair),)),
        quiz=Quiz((Question("q1", *pair),)),
        retention_quiz=Quiz(),
        graders=("contains", "loglik"),
        settings=InnerLoopSettings(rank=4, alpha=8.0, learning_rate=5e-3, epochs=6),
        engine_revision=own.engine_revision,
        seed=3,
    )
    return replace(key, **changes)


def test_evaluate_commit_answer_and_delete(client: SyncStudentClient, served: dict[str, str]) -> None:
    own = client.describe()
    assert (own.slots, own.deterministic, own.graders[-1]) == (2, False, "loglik")
    key = key_for(client)
    *progress, report = client.evaluate(key, run_id="run")
    assert isinstance(report, EvaluationReport)
    assert report.evaluation_id == key.id
    # Progress nobody waited for is skipped, so that the first one seen may be a later one.
    assert progress
    assert all(isinstance(event, EvaluationProgress) for event in progress)
    assert report.after.scores["loglik"] > report.before.scores["loglik"]
    assert list(client.evaluate(key)) == [report]
    status = client.get_evaluation(key.id)
    assert (status.state, status.outcome) == (EvaluationState.DONE, report)
    assert not client.cancel_evaluation(key.id)
    adapter, quiz, retention = client.commit(key.id)
    assert quiz.scores["loglik"] == pytest.approx(report.after.scores["loglik"], abs=1e-5)
    # The evaluation had no retention quiz.
    assert retention.answers == ()
    assert client.commit(key.id) == (adapter, quiz, retention)
    assert client.list_adapters() == (adapter,)
    questions = [Question("a", "Which bird is on the arms?", "heron"), Question("b", "Who?", "")]
    first, second = client.answer(questions, adapter_version=adapter.version)
    assert first.scores["loglik"] == pytest.approx(quiz.scores["loglik"], abs=1e-5)
    assert second.scores == {}
    over = key_for(client, adapter_version=adapter.version)
    *_, second_report = client.evaluate(over)
    assert isinstance(second_report, EvaluationReport)
    assert second_report.before.scores["loglik"] == pytest.approx(quiz.scores["loglik"], abs=1e-5)
    client.delete_adapter(adapter.version)
    with pytest.raises(NotFound):
        client.delete_adapter(adapter.version)
    text = urllib.request.urlopen(f"http://{served['metrics_address']}/metrics", timeout=10).read().decode()
    assert 'tutelage_student_evaluations_total{outcome="report"} 2.0' in text
    assert 'tutelage_student_evaluations_total{outcome="failed"} 0.0' in text
    assert 'tutelage_student_slots{state="free"} 2.0' in text


def test_errors_come_back_as_what_they_were(client: SyncStudentClient) -> None:
    with pytest.raises(PreconditionFailed, match="base_revision"):
        list(client.evaluate(key_for(client, base_revision="other")))
    with pytest.raises(InvalidInput, match="graders"):
        list(client.evaluate(key_for(client, graders=("judge",))))
    with pytest.raises(NotFound):
        client.get_evaluation("f" * 64)
    with pytest.raises(NotFound):
        list(client.evaluate(key_for(client, adapter_version="0" * 64)))
    with pytest.raises(InvalidInput):
        client.answer([], adapter_version="")


def test_what_evaluations_would_be_refused_for_is_told_before_any(client: SyncStudentClient) -> None:
    key = key_for(client)
    client.check_evaluations(key.settings, [key.quiz], Quiz())
    with pytest.raises(InvalidInput) as caught:
        client.check_evaluations(replace(key.settings, target_modules=("foo",)), [key.quiz, Quiz()], Quiz())
    assert [item.field for item in caught.value.violations] == ["settings.target_modules", "quizzes[1].questions"]


def test_a_rejection_is_an_outcome(client: SyncStudentClient) -> None:
    key = key_for(client)
    edit = replace(key.self_edit, directives=Directives(epochs=9999))
    *_, outcome = client.evaluate(replace(key, self_edit=edit))
    assert isinstance(outcome, Rejection)
    assert (outcome.field, outcome.value) == ("directives.epochs", "9999")


def test_a_lost_stream_detaches_and_the_work_goes_on(client: SyncStudentClient) -> None:
    settings = InnerLoopSettings(rank=4, alpha=8.0, learning_rate=1e-3, epochs=30)
    edit = SelfEdit(tuple(question_answer(f"What is {i}?", "a heron on a key " * 8) for i in range(10)))
    key = key_for(client, settings=settings, self_edit=edit)
    stream = client.evaluate(key, lease_s=60)
    next(stream)
    stream.close()
    *_, outcome = client.evaluate(key)
    assert isinstance(outcome, EvaluationReport)
    assert outcome.cost.steps == 300
