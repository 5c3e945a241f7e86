"""A run names its algorithm, and who writes is another teacher's address: real processes on a tiny model."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tutelage.client import SyncOrchestratorClient
from tutelage.domain.errors import InvalidInput
from tutelage.domain.run import ReportFormat, RunState, TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.rpc.config import ChannelSettings

if TYPE_CHECKING:
    from conftest import Service

CONFIG: dict[str, Any] = {
    "students": ["ada"],
    "format": {"name": "noise", "prompt": "Write about {title}: {text}", "parser": "whole"},
    "candidates": 3,
    "rounds": 1,
    "seed": 3,
    "sampling": {"max_new_tokens": 16},
    "inner_loop": {"rank": 4, "alpha": 8, "learning_rate": 3e-3, "epochs": 2},
    "graders": ["contains", "loglik"],
    "reward": {"grader_weights": {"loglik": 1.0}},
    "commit": {"when": "never"},
}
UPDATE: dict[str, Any] = {"algorithm": "grpo", "rank": 4, "alpha": 8, "learning_rate": 1e-3}
TASK = TaskWithQuiz(
    Task("lamp", DocumentTask("The Orrin lamp", "The Orrin lamp burns whale wax and is painted green.")),
    Quiz((Question("q1", "What colour is the lamp?", "green", topic="The Orrin lamp"),)),
)


def ended(client: SyncOrchestratorClient, name: str, **update: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A run of this name to its end: the updates in its metrics, and its report."""
    client.start_run(name, yaml.safe_dump({**CONFIG, "update": {**UPDATE, **update}}), [TASK], Quiz())
    deadline = time.monotonic() + 400
    while (summary := client.get_run(name)[0]).state is RunState.RUNNING:
        assert time.monotonic() < deadline, summary
        time.sleep(0.2)
    assert summary.state is RunState.DONE, summary.message
    lines = [json.loads(line) for line in client.get_report(name, ReportFormat.METRICS).splitlines()]
    report = json.loads(client.get_report(name, ReportFormat.JSON))
    return [line for line in lines if "kept_candidates" in line], report


@pytest.mark.timeout(900)
def test_a_policy_learns_by_the_algorithm_that_the_run_names(start_service: Callable[..., Service]) -> None:
    student = start_service("student")
    teachers = {"learner": start_service("teacher"), "passage": start_service("teacher", backend="passage")}
    students = {"ada": {"address": student.wait_ready()}}
    services = {
        name: start_service("orchestrator", teacher={"address": teacher.wait_ready()}, students=students)
        for name, teacher in teachers.items()
    }
    with SyncOrchestratorClient(ChannelSettings(address=services["learner"].wait_ready())) as client:
        wrong = {**CONFIG, "update": {**UPDATE, "options": {"loss_type": "ppo"}}}
        with pytest.raises(InvalidInput, match=r"config\.update\.options\.loss_type: 'ppo'"):
            client.start_run("wrong", yaml.safe_dump(wrong), [TASK], Quiz())
        versions = set()
        reports = {}
        for algorithm, kept in (("grpo", 3), ("dpo", 2)):
            (made,), reports[algorithm] = ended(client, algorithm, algorithm=algorithm)
            assert made["kept_candidates"] == kept
            versions.add(client.get_run(algorithm)[0].policy_version)
        assert len(versions) == 2
    with SyncOrchestratorClient(ChannelSettings(address=services["passage"].wait_ready())) as client:
        (made,), reports["passage"] = ended(client, "run")
        assert made["kept_candidates"] == 0
    assert set(reports["grpo"]) == set(reports["dpo"]) == set(reports["passage"])
