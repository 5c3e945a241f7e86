"""Broken at random again and again, runs end with the rewards, versions and policy of undisturbed ones.

The teacher, the students and the orchestrator are killed with -9, their connections are cut and delayed, and on
PostgreSQL its sessions are ended. Which fault comes when follows from a seed, which is printed. CI breaks a few things;
the whole:

    TUTELAGE_FAULTS=60 python -m pytest -s tests/faults
    TUTELAGE_FAULTS=60 TUTELAGE_FAULTS_SEED=4711 python -m pytest -s tests/faults    # the same faults again
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tutelage.domain.errors import Unavailable
from tutelage.domain.run import ReportFormat, RunState, RunSummary, TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task

FAULTS = int(os.environ.get("TUTELAGE_FAULTS", "3"))
SEED = int(os.environ.get("TUTELAGE_FAULTS_SEED", "0")) or secrets.randbelow(10**6) + 1
WHOLE = "TUTELAGE_FAULTS" in os.environ
RUN_S = 900.0
CONFIG: dict[str, Any] = {
    "students": ["ada", "ben"],
    # A random model writes noise: whatever it is, it is a document.
    "format": {"name": "noise", "prompt": "Write about {title}: {text}", "parser": "whole"},
    "candidates": 2,
    "rounds": 2 if WHOLE else 1,
    "sampling": {"max_new_tokens": 16},
    "inner_loop": {"rank": 4, "alpha": 8, "learning_rate": 3e-3, "epochs": 30},
    "graders": ["contains", "loglik"],
    "reward": {"grader_weights": {"loglik": 1.0}},
    "update": {"rank": 4, "alpha": 8, "min_reward": -100.0},
    "commit": {"when": "end", "grader": "loglik", "min_gain": 0.0},
    "deadlines": {"evaluation_s": 120, "attempts": 1000},
}
TASKS = tuple(
    TaskWithQuiz(Task(name, DocumentTask(title, text)), Quiz((Question("q1", question, answer, topic=title),)))
    for name, title, text, question, answer in (
        ("lamp", "The Orrin lamp", "The Orrin lamp burns whale wax and is green.", "What colour is it?", "green"),
        ("ferry", "The Tull ferry", "The Tull ferry leaves at nine with forty goats.", "When does it leave?", "nine"),
    )
)


def look(stack: Any, run_id: str) -> RunSummary | None:
    """The run's summary; None while the orchestrator does not answer."""
    try:
        with stack.orchestrator() as client:
            return client.get_run(run_id)[0]  # type: ignore[no-any-return]
    except Unavailable:
        return None


def start(stack: Any, run_id: str, seed: int) -> None:
    config = yaml.safe_dump({**CONFIG, "seed": seed})
    deadline = time.monotonic() + RUN_S
    while True:
        try:
            with stack.orchestrator() as client:
                client.start_run(run_id, config, TASKS, Quiz())
            return
        except Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def ended(stack: Any, run_id: str) -> RunSummary:
    deadline = time.monotonic() + RUN_S
    while time.monotonic() < deadline:
        summary = look(stack, run_id)
        if summary is not None and summary.state.ended:
            return summary
        time.sleep(0.2)
    pytest.fail(f"run {run_id} does not end\n{stack.log('orchestrator')}")


def results(stack: Any, run_id: str) -> dict[str, Any]:
    """All that a run leads to: rewards, versions, policy; fails when a reward is there twice."""
    with stack.orchestrator() as client:
        tree = json.loads(client.get_report(run_id, ReportFormat.JSON))["report"]
        summary, _ = client.get_run(run_id)
    found = [
        ((candidate["id"], evaluation["student"], evaluation["repeat"]), evaluation["reward"])
        for candidate in tree["candidates"]
        for evaluation in candidate["evaluations"]
        if evaluation["phase"] == "round"
    ]
    counts = Counter(key for key, _ in found)
    assert max(counts.values()) == 1, counts
    return {
        "rewards": dict(found),
        "commits": [(each["student"], each["task_id"], each["version"]) for each in tree["commits"]],
        # What each update learned from, and what came of it.
        "updates": [
            {name: each["result"]["policy"][name] for name in ("parent_version", "data_hash", "update_id", "version")}
            for each in tree["updates"]
        ],
        "policy": summary.policy_version,
        "unscored": summary.unscored,
    }


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_runs_that_are_broken_end_as_undisturbed_ones(
    database: str, make_stack: Callable[..., Any], breaker: Any, request: pytest.FixtureRequest
) -> None:
    if database == "postgres" and not WHOLE:
        pytest.skip("the faults on PostgreSQL belong to the whole (TUTELAGE_FAULTS=60)")
    url = request.getfixturevalue("postgres") if database == "postgres" else ""
    print(f"\n{FAULTS} faults on {database}, seed {SEED} (TUTELAGE_FAULTS_SEED)", flush=True)
    runs = {f"run-{number}": number for number in range(1, max(1, FAULTS // 6) + 1)}
    quiet = make_stack("quiet")
    expected = {}
    for run_id, seed in runs.items():
        start(quiet, run_id, seed)
        summary = ended(quiet, run_id)
        assert summary.state is RunState.DONE, summary
        expected[run_id] = results(quiet, run_id)
        assert expected[run_id]["unscored"] == 0
        assert len(expected[run_id]["rewards"]) >= 4
    quiet.stop()

    stack = make_stack("disturbed", url)
    hand = breaker(stack, SEED)
    for number, (run_id, seed) in enumerate(runs.items(), start=1):
        start(stack, run_id, seed)
        while len(hand.broken) < FAULTS * number / len(runs):
            hand.pause()
            now = look(stack, run_id)
            if now is not None and now.state.ended:
                break
            hand.break_one()
        summary = ended(stack, run_id)
        assert summary.state is RunState.DONE, (SEED, hand.broken, summary)
        assert results(stack, run_id) == expected[run_id], (SEED, hand.broken)
        print(f"  run {number} ended as undisturbed, after {len(hand.broken)} faults", flush=True)
    assert hand.broken, "the runs ended before anything was broken"
