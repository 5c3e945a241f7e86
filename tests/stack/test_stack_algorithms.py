"""A run names its algorithm, and who writes is another teacher's address: real processes on a tiny model."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families

from tutelage.client import SyncOrchestratorClient, SyncTeacherClient
from tutelage.domain.errors import InvalidInput
from tutelage.domain.run import ReportFormat, RunState, TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.rpc.config import ChannelSettings

if TYPE_CHECKING:
    from tests.stack.conftest import Service

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


def start(client: SyncOrchestratorClient, name: str, **config: Any) -> None:
    client.start_run(name, yaml.safe_dump({**CONFIG, **config}), [TASK], Quiz())


def ended(client: SyncOrchestratorClient, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The run of this name at its end: the updates in its metrics, and its report."""
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
    pages = {"metrics_port": 0}
    student = start_service("student", server=dict(pages))
    teachers = {
        "learner": start_service("teacher", server=dict(pages)),
        "passage": start_service("teacher", backend="passage"),
    }
    students = {"ada": {"address": student.wait_ready()}}
    services = {
        name: start_service(
            "orchestrator", teacher={"address": teacher.wait_ready()}, students=students, server=dict(pages)
        )
        for name, teacher in teachers.items()
    }
    with SyncOrchestratorClient(ChannelSettings(address=services["learner"].wait_ready())) as client:
        with pytest.raises(InvalidInput, match=r"config\.update\.options\.loss_type: 'ppo'"):
            start(client, "wrong", update={**UPDATE, "options": {"loss_type": "ppo"}})
        versions = set()
        reports = {}
        for algorithm, kept, logged in (("grpo", 3, "kl"), ("dpo", 2, "rewards/margins")):
            start(client, algorithm, update={**UPDATE, "algorithm": algorithm})
            (made,), reports[algorithm] = ended(client, algorithm)
            assert made["kept_candidates"] == kept
            assert {"loss", "grad_norm", logged} <= made["metrics"].keys()
            versions.add(client.get_run(algorithm)[0].policy_version)
        assert len(versions) == 2
        doubled = client.recompute_rewards("grpo", "grader_weights: {loglik: 2.0}")
        assert [each.recomputed for each in doubled] == [pytest.approx(2 * (each.stored or 0)) for each in doubled]
    with SyncOrchestratorClient(ChannelSettings(address=services["passage"].wait_ready())) as client:
        start(client, "run", update=UPDATE)
        (made,), reports["passage"] = ended(client, "run")
        assert made["kept_candidates"] == 0
    assert set(reports["grpo"]) == set(reports["dpo"]) == set(reports["passage"])
    on_the_pages_of_metrics(student, teachers["learner"], services["learner"], versions)
    for service, name in (
        (student, "Student"),
        (teachers["learner"], "Teacher"),
        (services["learner"], "Orchestrator"),
    ):
        with grpc.insecure_channel(service.wait_ready()) as channel:
            told = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {f"tutelage.v1.{name}Service", "grpc.health.v1.Health"} <= set(told)


@pytest.mark.timeout(600)
def test_a_policy_learns_its_line_of_directives_under_an_anchor(start_service: Callable[..., Service]) -> None:
    student, teacher = start_service("student"), start_service("teacher")
    orchestrator = start_service(
        "orchestrator",
        teacher={"address": teacher.wait_ready()},
        students={"ada": {"address": student.wait_ready()}},
    )
    directed = {
        "format": {**CONFIG["format"], "directives": True},
        "sampling": {"max_new_tokens": 140},
        # Whatever a random model asks for.
        "reward": {"grader_weights": {"loglik": 1.0}, "rejected_reward": -50.0},
    }
    with SyncOrchestratorClient(ChannelSettings(address=orchestrator.wait_ready())) as client:
        with pytest.raises(InvalidInput, match=r"config\.update\.options\.anchor: '1.0'.*part is all"):
            start(client, "wrong", **directed, update={**UPDATE, "options": {"anchor": 1.0}})
        learnt = {"algorithm": "rloo", "options": {"part": "first_line", "anchor": 1.0}}
        start(client, "line", **directed, update={**UPDATE, **learnt})
        (made,), _ = ended(client, "line")
        assert made["kept_candidates"] == 3
        learnt_version = client.get_run("line")[0].policy_version
    with SyncTeacherClient(ChannelSettings(address=teacher.wait_ready())) as client_of_teacher:
        told = client_of_teacher.describe()
    assert told.latest_policy_version == learnt_version != told.initial_policy_version


def on_the_pages_of_metrics(student: Service, teacher: Service, orchestrator: Service, versions: set[str]) -> None:
    """What the two runs of three candidates and one policy each left there."""
    counts = scraped(student)
    assert counts["tutelage_student_queue", ()] == 0
    assert counts["tutelage_student_evaluations_total", (("outcome", "report"),)] >= 3
    assert counts["tutelage_student_training_tokens_total", ()] > 0
    assert counts["tutelage_student_slots", (("state", "busy"),)] == 0
    told = [dict(labels) for name, labels in scraped(teacher) if name == "tutelage_teacher_policy_info"]
    assert [labels["version"] in versions for labels in told] == [True]
    assert scraped(teacher)["tutelage_teacher_update_logged", (("name", "grad_norm"),)] > 0
    counts = scraped(orchestrator)
    assert counts["tutelage_orchestrator_reward_count", ()] == 6
    called = (("grpc_code", "OK"), ("grpc_method", "StartRun"))
    assert [count for (_, labels), count in counts.items() if set(called) <= set(labels)][:1] == [2]


def scraped(service: Service) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples on a service's page, by name and labels."""
    with urllib.request.urlopen(f"http://{service.metrics_address}/metrics", timeout=10) as page:
        families = text_string_to_metric_families(page.read().decode())
        return {
            (each.name, tuple(sorted(each.labels.items()))): each.value
            for family in families
            for each in family.samples
        }
