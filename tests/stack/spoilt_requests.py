"""Good requests to each service, for a test to spoil in one place, and the refusal that it then expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import grpc
import pytest
import yaml

from tutelage.client import SyncOrchestratorClient, SyncStudentClient, SyncTeacherClient
from tutelage.domain.errors import InvalidInput, TutelageError
from tutelage.domain.evaluation import EvaluationKey, InnerLoopSettings
from tutelage.domain.policy import Candidate, Format, Parser, Sampling
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import SelfEdit, question_answer
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.rpc.errors import status_code

CONTEXT = 512
"""Tokens of the tiny model, which reads a byte as one."""
LONG = "A heron on a key. " * 60
PAIR = ("Which bird is on the arms?", "heron")
NOISE = Format("noise", "Write about {title}: {text}", Parser.WHOLE)
TASK = TaskWithQuiz(
    Task("lamp", DocumentTask("The Orrin lamp", "The Orrin lamp is green.")),
    Quiz((Question("q1", "Colour?", "green"),)),
)
CONFIG: dict[str, Any] = {
    "students": ["ada"], "format": {"name": "noise", "prompt": "{text}", "parser": "whole"}, "candidates": 1,
    "rounds": 1, "sampling": {"max_new_tokens": 8}, "inner_loop": {"rank": 4, "alpha": 8, "epochs": 1},
}  # fmt: skip


def refused(call: Callable[[], object], code: grpc.StatusCode) -> TutelageError:
    with pytest.raises(TutelageError) as caught:
        call()
    assert status_code(caught.value) is code, caught.value
    return caught.value


def refused_input(call: Callable[[], object], **allowed: str) -> None:
    """INVALID_ARGUMENT for exactly these fields (`__` stands for a dot), each with that text in what is allowed."""
    error = refused(call, grpc.StatusCode.INVALID_ARGUMENT)
    assert isinstance(error, InvalidInput)
    found = {violation.field: violation.allowed for violation in error.violations}
    expected = {field.replace("__", "."): text for field, text in allowed.items()}
    assert found.keys() == expected.keys(), error
    for field, text in expected.items():
        assert text in found[field], found[field]


def key_for(student: SyncStudentClient, **changes: Any) -> EvaluationKey:
    own = student.describe()
    key = EvaluationKey(
        own.base_model, own.base_revision, own.quantisation, "", SelfEdit((question_answer(*PAIR),)),
        Quiz((Question("q1", *PAIR),)), Quiz(), ("loglik",), InnerLoopSettings(rank=4, alpha=8, epochs=1),
        own.engine_revision, 1,
    )  # fmt: skip
    return replace(key, **changes)


def study(student: SyncStudentClient, **changes: Any) -> Any:
    *_, outcome = student.evaluate(key_for(student, **changes))
    return outcome


def write(
    teacher: SyncTeacherClient, task: Task = TASK.task, format: Format = NOISE, candidates: int = 1, **changes: Any
) -> list[Candidate]:
    policy = changes.pop("policy_version", None) or teacher.describe().initial_policy_version
    sampling = Sampling(**{"max_new_tokens": 8, **changes})
    return list(
        teacher.write_self_edits(
            task, format=format, candidates=candidates, sampling=sampling, policy_version=policy, seed=1
        )
    )


def start(
    orchestrator: SyncOrchestratorClient,
    tasks: tuple[TaskWithQuiz, ...] = (TASK,),
    run_id: str = "refused",
    **changes: Any,
) -> object:
    return orchestrator.start_run(run_id, yaml.safe_dump({**CONFIG, **changes}), tasks, Quiz())


def with_text(text: str) -> Task:
    return replace(TASK.task, content=DocumentTask("Orrin", text))
