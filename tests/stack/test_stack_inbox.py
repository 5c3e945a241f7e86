"""An inbox over real processes: its orchestrator is killed again and again, and each document is learned once."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from tutelage.client import SyncOrchestratorClient, SyncStudentClient
from tutelage.domain.errors import Unavailable
from tutelage.domain.inbox import Inbox, InboxDocument, InboxDocumentState
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task
from tutelage.rpc.config import ChannelSettings

if TYPE_CHECKING:
    from tests.stack.conftest import Service

DOCUMENTS = 4
INBOX: dict[str, Any] = {
    "students": ["ada"],
    # Open whenever the test is run.
    "cron": "* * * * *",
    "window_minutes": 2,
    "budget": 1000,
    "batch": 2,
    "policy": "latest",
    # A random model writes noise: whatever it is, it is a document, and whatever it teaches is kept.
    "format": {"name": "noise", "prompt": "Write about {title}: {text}", "parser": "whole"},
    "candidates": 2,
    "sampling": {"max_new_tokens": 16},
    "inner_loop": {"rank": 4, "alpha": 8, "learning_rate": 3e-3, "epochs": 20},
    "graders": ["contains", "loglik"],
    "gate": {"grader": "loglik", "min_gain": -100.0, "max_retention_loss": None},
    "deadlines": {"evaluation_s": 120, "attempts": 100},
}


def documents() -> list[TaskWithQuiz]:
    return [
        TaskWithQuiz(
            Task(f"d{number}", DocumentTask(f"Ship {number}", f"Ship {number} carries {number} lamps of green glass.")),
            Quiz((Question("q", f"What does ship {number} carry?", "lamps", topic=f"Ship {number}"),)),
        )
        for number in range(DOCUMENTS)
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.timeout(420)
def test_an_inbox_survives_kills_of_its_orchestrator(start_service: Callable[..., Service], tmp_path: Any) -> None:
    teacher, student = start_service("teacher"), start_service("student")
    settings: dict[str, Any] = {
        "teacher": {"address": teacher.wait_ready()},
        "students": {"ada": {"address": student.wait_ready()}},
        "retry": {"initial_s": 0.2, "maximum_s": 1.0},
        "run_lease_s": 2.0,
        "inboxes": {"ships": INBOX},
        "database_url": f"sqlite:///{tmp_path / 'orchestrator.sqlite'}",
    }
    port = free_port()
    channel = ChannelSettings(address=f"127.0.0.1:{port}")
    orchestrator = start_service("orchestrator", **settings, server={"port": port})
    orchestrator.wait_ready()
    with SyncOrchestratorClient(channel) as client:
        assert client.submit_documents("ships", documents()) == (DOCUMENTS, 0)
    shown: list[InboxDocument] = []
    inbox: Inbox | None = None
    kills = 0
    deadline = time.monotonic() + 300
    next_kill = time.monotonic() + 2.5
    while kills < 3 or len([item for item in shown if item.state is InboxDocumentState.DONE]) < DOCUMENTS:
        assert time.monotonic() < deadline, f"{shown}\n{orchestrator.err[-4000:]}"
        time.sleep(0.3)
        if kills < 3 and time.monotonic() > next_kill:
            os.killpg(orchestrator.process.pid, signal.SIGKILL)
            orchestrator.process.wait()
            orchestrator = start_service("orchestrator", **settings, server={"port": port})
            orchestrator.wait_ready()
            kills += 1
            next_kill = time.monotonic() + 2.5
        try:
            with SyncOrchestratorClient(channel) as client:
                found = client.list_inbox("ships")
        except Unavailable:
            continue
        shown = [item for item in found if isinstance(item, InboxDocument)]
        inbox = next(item for item in found if isinstance(item, Inbox))
    with SyncOrchestratorClient(channel) as client:
        # What is given again after all that is still known.
        assert client.submit_documents("ships", documents()) == (0, DOCUMENTS)
        (ada,) = client.list_students()
        runs = {item.run_id for item in client.list_runs()}
    assert {item.run_id for item in shown} == runs
    assert inbox is not None
    assert (inbox.done, inbox.waiting, inbox.working, inbox.failed) == (DOCUMENTS, 0, 0, 0)
    kept = Counter(item.id for item in shown for outcome in item.outcomes if outcome.committed)
    assert kept == {f"d{number}": 1 for number in range(DOCUMENTS)}
    # The student's versions are one chain with a link for each document.
    with SyncStudentClient(ChannelSettings(address=settings["students"]["ada"]["address"])) as client:
        parents = {adapter.version: adapter.parent_version for adapter in client.list_adapters()}
    chain, version = [], ada.current_adapter_version
    while version:
        chain.append(version)
        version = parents[version]
    assert sorted(chain) == sorted(outcome.version for item in shown for outcome in item.outcomes)
