"""SIGTERM to a student in the middle of an evaluation: the call ends within the grace, and so does the process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tutelage.client import SyncStudentClient
from tutelage.domain.description import EvaluationProgress
from tutelage.domain.errors import NotFound, Unavailable
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, Failure, InnerLoopSettings
from tutelage.domain.self_edit import SelfEdit, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.rpc.config import ChannelSettings

if TYPE_CHECKING:
    from tests.stack.conftest import Service

OVERHEAD_S = 15.0
"""What a busy machine may take beyond the grace."""
LONG_ENOUGH = 30
"""Epochs of an evaluation that a signal reaches in time."""


def key_for(student: SyncStudentClient, documents: int, epochs: int) -> EvaluationKey:
    own = student.describe()
    edit = SelfEdit(tuple(question_answer(f"What is {i}?", "a heron on a key " * 12) for i in range(documents)))
    return EvaluationKey(
        own.base_model, own.base_revision, own.quantisation, "", edit, Quiz((Question("q1", "Who?", "heron"),)),
        Quiz(), ("loglik",), InnerLoopSettings(rank=4, alpha=8, epochs=epochs), own.engine_revision, 1,
    )  # fmt: skip


def steps(student: SyncStudentClient, key: EvaluationKey, seen: threading.Event) -> EvaluationOutcome | Unavailable:
    """What the caller is told; `seen` is set with the first step."""
    try:
        for event in student.evaluate(key, timeout_s=120):
            if not isinstance(event, EvaluationProgress):
                return event
            if event.steps_done:
                seen.set()
    except Unavailable as error:
        return error
    pytest.fail("the stream ended without an outcome")


def stopped_in_the_middle(service: Service, key: EvaluationKey) -> tuple[EvaluationOutcome | Unavailable, float]:
    """What the caller of an evaluation is told when SIGTERM comes while it trains, and the seconds to the end."""
    told: list[EvaluationOutcome | Unavailable] = []
    seen = threading.Event()
    with SyncStudentClient(ChannelSettings(address=service.wait_ready())) as student:
        caller = threading.Thread(target=lambda: told.append(steps(student, key, seen)))
        caller.start()
        assert seen.wait(60), service.err
        begun = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        caller.join(60)
        assert service.process.wait(60) == 0, service.err
    seconds = time.monotonic() - begun
    assert len(told) == 1
    assert "Traceback" not in service.err
    return told[0], seconds


def test_a_call_that_fits_into_the_grace_ends_with_its_report(start_service: Callable[..., Service]) -> None:
    service = start_service("student", server={"grace_s": 60})
    with SyncStudentClient(ChannelSettings(address=service.wait_ready())) as student:
        key = key_for(student, documents=4, epochs=LONG_ENOUGH)
    told, seconds = stopped_in_the_middle(service, key)
    assert isinstance(told, EvaluationReport), told
    # It does not wait for a grace that nobody needs.
    assert seconds < 60


def test_a_call_that_does_not_is_told_as_retryable_and_leaves_nothing(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    settings = {"data_dir": str(tmp_path / "data"), "bounds": {"max_epochs": 3000, "max_steps": 100_000}}
    service = start_service("student", server={"grace_s": 1}, **settings)
    with SyncStudentClient(ChannelSettings(address=service.wait_ready())) as student:
        key = key_for(student, documents=10, epochs=3000)
    told, seconds = stopped_in_the_middle(service, key)
    assert seconds < 1 + OVERHEAD_S
    assert isinstance(told, Unavailable) or (isinstance(told, Failure) and told.retryable), told
    # Nothing of it is kept, and the student that is started anew goes on.
    again = start_service("student", **settings)
    with SyncStudentClient(ChannelSettings(address=again.wait_ready())) as student:
        with pytest.raises(NotFound):
            student.get_evaluation(key.id)
        shorter = replace(key, settings=replace(key.settings, epochs=1))
        *_, outcome = student.evaluate(shorter)
        assert isinstance(outcome, EvaluationReport)
    assert again.stop() == 0
