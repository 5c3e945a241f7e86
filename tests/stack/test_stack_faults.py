"""Killed in the middle and started again, a run ends with the rewards of an undisturbed one: none lost or invented.

The two are on stacks of their own: the same run twice on one machine gives the same rewards, policies and versions of
the students, bit for bit, since policies and versions are named by the hash of what is stored.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tutelage.domain.errors import Unavailable
from tutelage.domain.run import ReportFormat, RunState, RunSummary, TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task

if TYPE_CHECKING:
    from tests.stack.conftest import Stack

RUN_ID = "faults"
ROUNDS, CANDIDATES, TASKS, STUDENTS = 2, 2, 2, 2
CONFIG: dict[str, Any] = {
    "students": ["ada", "ben"],
    # A random model writes noise: whatever it is, it is a document.
    "format": {"name": "noise", "prompt": "Write about {title}: {text}", "parser": "whole"},
    "candidates": CANDIDATES,
    "rounds": ROUNDS,
    "seed": 11,
    "sampling": {"max_new_tokens": 24},
    # Long enough on a tiny model that a kill falls into an evaluation.
    "inner_loop": {"rank": 4, "alpha": 8, "learning_rate": 3e-3, "epochs": 30},
    "graders": ["contains", "loglik"],
    "reward": {"grader_weights": {"loglik": 1.0}},
    "update": {"rank": 4, "alpha": 8, "min_reward": -100.0},
    "commit": {"when": "end", "grader": "loglik", "min_gain": 0.0},
    "deadlines": {"evaluation_s": 120, "attempts": 100},
}
DOCUMENTS = {
    "lamp": (
        "The Orrin lamp",
        "The Orrin lamp burns whale wax and is painted green.",
        "What colour is the lamp?",
        "green",
    ),
    "ferry": (
        "The Tull ferry",
        "The Tull ferry leaves at nine and carries forty goats.",
        "When does it leave?",
        "nine",
    ),
}


def tasks() -> list[TaskWithQuiz]:
    return [
        TaskWithQuiz(Task(name, DocumentTask(title, text)), Quiz((Question("q1", question, answer, topic=title),)))
        for name, (title, text, question, answer) in DOCUMENTS.items()
    ]


def start(stack: Stack) -> None:
    with stack.orchestrator() as client:
        client.start_run(RUN_ID, yaml.safe_dump(CONFIG), tasks(), Quiz())


def wait_for(stack: Stack, reached: Callable[[RunSummary], bool], timeout_s: float = 240) -> RunSummary:
    """Polls the run, also while the orchestrator is away, until `reached`."""
    deadline = time.monotonic() + timeout_s
    summary: RunSummary | None = None
    while time.monotonic() < deadline:
        try:
            with stack.orchestrator() as client:
                summary, _ = client.get_run(RUN_ID)
        except Unavailable:
            summary = None
        if summary is not None and reached(summary):
            return summary
        time.sleep(0.05)
    pytest.fail(f"not reached in {timeout_s} s; last seen: {summary}\n{stack.log('orchestrator')}")


def report(stack: Stack) -> dict[str, Any]:
    with stack.orchestrator() as client:
        found: dict[str, Any] = json.loads(client.get_report(RUN_ID, ReportFormat.JSON))["report"]
        return found


def rewards(tree: dict[str, Any]) -> dict[tuple[str, str, int], float | None]:
    """Reward by (candidate, student, repeat) of the rounds; fails when one is there twice."""
    found = [
        ((candidate["id"], evaluation["student"], evaluation["repeat"]), evaluation["reward"])
        for candidate in tree["candidates"]
        for evaluation in candidate["evaluations"]
        if evaluation["phase"] == "round"
    ]
    counts = Counter(key for key, _ in found)
    assert max(counts.values()) == 1, counts
    return dict(found)


def policies(tree: dict[str, Any]) -> list[tuple[str, str]]:
    """What the teacher learned from in each round, and the version that it made."""
    made = [update["result"]["policy"] for update in tree["updates"]]
    return [(policy["data_hash"], policy["version"]) for policy in made]


def ended(summary: RunSummary) -> bool:
    return summary.state is not RunState.RUNNING


@pytest.mark.timeout(900)
def test_run_killed_everywhere_ends_with_the_rewards_of_an_undisturbed_run(
    make_stack: Callable[[str], Stack],
) -> None:
    quiet = make_stack("quiet")
    start(quiet)
    summary = wait_for(quiet, ended)
    assert summary.state is RunState.DONE, summary
    tree = report(quiet)
    expected = rewards(tree)
    parsed = [candidate for candidate in tree["candidates"] if candidate["rejection"] is None]
    assert len(tree["candidates"]) == ROUNDS * CANDIDATES * TASKS
    # Noise may hold no word at all and be rejected; what was parsed is scored by every student.
    assert len(expected) == len(parsed) * STUDENTS >= 10
    assert all(value is not None for value in expected.values())
    expected_commits = [(c["student"], c["task_id"], c["version"]) for c in tree["commits"]]
    assert len({version for _, version in policies(tree)}) == ROUNDS
    quiet.stop()

    stack = make_stack("disturbed")
    start(stack)
    wait_for(stack, lambda run: run.evaluations_done >= 1)
    stack.restart("ada")
    wait_for(stack, lambda run: run.evaluations_done >= 3)
    stack.restart("orchestrator")
    stack.wait_ready("orchestrator")
    wait_for(stack, lambda run: (run.round == 1 and run.phase.value == "updating") or run.round == 2)
    stack.restart("teacher")
    wait_for(stack, lambda run: run.round == 2)
    stack.restart("ben")
    stack.restart("orchestrator")
    stack.wait_ready("orchestrator")
    summary = wait_for(stack, ended)

    assert summary.state is RunState.DONE, summary
    disturbed = report(stack)
    assert rewards(disturbed) == expected
    assert policies(disturbed) == policies(tree)
    assert [(c["student"], c["task_id"], c["version"]) for c in disturbed["commits"]] == expected_commits


def test_same_run_twice_attaches_and_other_content_is_refused(make_stack: Callable[[str], Stack]) -> None:
    from tutelage.domain.errors import AlreadyExists, InvalidInput, NotFound

    stack = make_stack("twice")
    with stack.orchestrator() as client:
        text = yaml.safe_dump({**CONFIG, "rounds": 1, "candidates": 1, "commit": {"when": "never"}})
        _, created = client.start_run(RUN_ID, text, tasks(), Quiz())
        _, created_again = client.start_run(RUN_ID, text, tasks(), Quiz())
        assert (created, created_again) == (True, False)
        with pytest.raises(AlreadyExists):
            client.start_run(RUN_ID, text, tasks()[:1], Quiz())
        with pytest.raises(InvalidInput, match="students") as unknown:
            client.start_run("other", yaml.safe_dump({**CONFIG, "students": ["zoe"]}), tasks(), Quiz())
        assert "ada" in str(unknown.value)
        with pytest.raises(InvalidInput, match="format"):
            client.start_run("other", yaml.safe_dump({**CONFIG, "format": "sonnet"}), tasks(), Quiz())
        with pytest.raises(NotFound):
            client.get_run("other")
    assert wait_for(stack, ended).state is RunState.DONE
    with stack.orchestrator() as client:
        page = client.get_report(RUN_ID, ReportFormat.HTML).decode()
        metrics = client.get_report(RUN_ID, ReportFormat.METRICS).decode()
    assert "<html" in page
    assert all(json.loads(line) for line in metrics.splitlines())
