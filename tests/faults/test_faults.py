"""Broken at random again and again, runs end with the rewards, versions and policy of undisturbed ones.

The teacher, the students and the orchestrator are killed with -9, their connections are cut, delayed and fall silent.
On PostgreSQL two orchestrators share the runs, all sessions are ended, what goes to the database is disturbed as well,
and it is away once for a minute. With students that are not deterministic and rounds that overlap, no reward is lost,
doubled or invented. Which fault comes when follows from a seed, which is printed; runs go on being started until there
were as many kills as asked for. CI breaks a few things; the whole, as one command:

    TUTELAGE_FAULTS=60 python -m pytest -s tests/faults
    TUTELAGE_FAULTS=60 TUTELAGE_FAULTS_SEED=4711 python -m pytest -s tests/faults    # the same faults again
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import yaml
from sqlalchemy import make_url

from tutelage.domain.errors import Unavailable
from tutelage.domain.run import ReportFormat, RunState, RunSummary, TaskWithQuiz
from tutelage.domain.task import DocumentTask, Question, Quiz, Task

KILLS = int(os.environ.get("TUTELAGE_FAULTS", "3"))
KILLS_OF_A_RUN = 12
"""At most; then the run is let end."""
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
LOOSE: dict[str, Any] = {
    **CONFIG,
    "staleness": 1,
    "evaluation_seeds": 2,
    "candidates": 3,
    "group": {"close": "minimum", "minimum": 2, "wait_s": 20},
    "reward": {"grader_weights": {"loglik": 1.0}, "across": "worst"},
    "deadlines": {"evaluation_s": 60, "attempts": 4},
}
TASKS = tuple(
    TaskWithQuiz(Task(name, DocumentTask(title, text)), Quiz((Question("q1", question, answer, topic=title),)))
    for name, title, text, question, answer in (
        ("lamp", "The Orrin lamp", "The Orrin lamp burns whale wax and is green.", "What colour is it?", "green"),
        ("ferry", "The Tull ferry", "The Tull ferry leaves at nine with forty goats.", "When does it leave?", "nine"),
    )
)


def asked(stack: Any, call: Callable[[Any], Any], tries_s: float = RUN_S) -> Any:
    """What the first orchestrator that can say answers; each is asked at least once."""
    deadline = time.monotonic() + tries_s
    while True:
        for client in stack.clients():
            try:
                return call(client)
            except Unavailable as error:
                refused = error
        if time.monotonic() > deadline:
            raise refused
        time.sleep(0.2)


def look(stack: Any, run_id: str) -> RunSummary | None:
    """The run's summary; None while no orchestrator answers."""
    try:
        return asked(stack, lambda client: client.get_run(run_id)[0], 0.0)  # type: ignore[no-any-return]
    except Unavailable:
        return None


def start(stack: Any, run_id: str, settings: dict[str, Any], seed: int) -> None:
    config = yaml.safe_dump({**settings, "seed": seed})
    asked(stack, lambda client: client.start_run(run_id, config, TASKS, Quiz()))


def ended(stack: Any, run_id: str) -> RunSummary:
    deadline = time.monotonic() + RUN_S
    while time.monotonic() < deadline:
        summary = look(stack, run_id)
        if summary is not None and summary.state.ended:
            return summary
        time.sleep(0.2)
    pytest.fail(f"run {run_id} does not end\n" + "\n".join(stack.log(name) for name in stack.orchestrators))


def told(stack: Any, run_id: str) -> dict[str, Any]:
    """The run's report."""
    report = asked(stack, lambda client: client.get_report(run_id, ReportFormat.JSON))
    return dict(json.loads(report)["report"])


def results(stack: Any, run_id: str) -> dict[str, Any]:
    """All that a run leads to: rewards, versions, policy; fails when a reward is there twice."""
    tree = told(stack, run_id)
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
        "policy": tree["header"]["summary"]["policy_version"],
        "unscored": tree["header"]["summary"]["unscored"],
    }


def broken_while_it_runs(stack: Any, hand: Any, run_id: str, kills: int) -> RunSummary:
    """Starts nothing: breaks things while the run goes on, at most until there were so many kills in all."""
    while hand.killed < kills:
        hand.pause()
        now = look(stack, run_id)
        if now is not None and now.state.ended:
            break
        if WHOLE and stack.database_url and not hand.others["outage"] and hand.killed >= kills // 3:
            hand.outage()
        else:
            hand.break_one()
    return ended(stack, run_id)


def everything_was_broken(stack: Any, hand: Any, kills: int) -> None:
    """Fails when a test broke less than it says."""
    print(f"  kills: {dict(hand.kills)}; traffic: {dict(hand.others)}", flush=True)
    assert hand.killed >= kills
    assert not WHOLE or not stack.database_url or hand.others["outage"]
    if kills > hand.bag_kills:
        assert set(hand.kills) >= hand.targets
        assert set(hand.others) >= hand.kinds


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str:
    """The database of the disturbed runs, a new one: students of their own have none of another's versions.

    Empty for SQLite.
    """
    if request.param == "sqlite":
        return ""
    if not WHOLE:
        pytest.skip("the faults on PostgreSQL belong to the whole (TUTELAGE_FAULTS=60)")
    server = make_url(request.getfixturevalue("postgres"))
    name = f"faults_{secrets.token_hex(4)}"
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.set(database=name).render_as_string(hide_password=False)


class Undisturbed:
    """What runs lead to when nothing is broken. Each starts from the adapters that the one before left."""

    def __init__(self, stack: Any) -> None:
        self._stack = stack
        self._found: list[dict[str, Any]] = []

    def run(self, number: int) -> dict[str, Any]:
        """The results of a run by its number, from 1, which is its seed."""
        while len(self._found) < number:
            seed = len(self._found) + 1
            start(self._stack, f"run-{seed}", CONFIG, seed)
            summary = ended(self._stack, f"run-{seed}")
            assert summary.state is RunState.DONE, summary
            found = results(self._stack, f"run-{seed}")
            assert found["unscored"] == 0
            assert len(found["rewards"]) >= 4
            self._found.append(found)
        return self._found[number - 1]


@pytest.fixture(scope="module")
def undisturbed(make_module_stack: Callable[..., Any]) -> Undisturbed:
    """Shared by both databases."""
    return Undisturbed(make_module_stack("quiet"))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
def test_runs_that_are_broken_end_as_undisturbed_ones(
    url: str, undisturbed: Undisturbed, make_stack: Callable[..., Any], breaker: Any
) -> None:
    stack = make_stack("disturbed", url)
    hand = breaker(stack, SEED)
    print(f"\n{KILLS} kills, seed {SEED} (TUTELAGE_FAULTS_SEED)", flush=True)
    for number in itertools.count(1):
        start(stack, f"run-{number}", CONFIG, number)
        summary = broken_while_it_runs(stack, hand, f"run-{number}", min(KILLS, hand.killed + KILLS_OF_A_RUN))
        assert summary.state is RunState.DONE, (SEED, hand.broken, summary)
        assert results(stack, f"run-{number}") == undisturbed.run(number), (SEED, hand.broken)
        print(f"  run {number} ended as undisturbed, after {len(hand.broken)} faults", flush=True)
        if hand.killed >= KILLS:
            break
    everything_was_broken(stack, hand, KILLS)


def no_reward_is_lost_doubled_or_invented(tree: dict[str, Any]) -> None:
    tasks, students = [each.task.id for each in TASKS], LOOSE["students"]
    repeats, rounds = LOOSE["evaluation_seeds"], LOOSE["rounds"]
    places = [(each["round"], each["task_id"], each["index"]) for each in tree["candidates"]]
    assert sorted(places) == [
        (round_, task, index)
        for round_ in range(1, rounds + 1)
        for task in sorted(tasks)
        for index in range(LOOSE["candidates"])
    ]
    for candidate in tree["candidates"]:
        given = [each for each in candidate["evaluations"] if each["phase"] == "round"]
        asked = [] if candidate["rejection"] else [(name, repeat) for name in students for repeat in range(repeats)]
        assert [(each["student"], each["repeat"]) for each in given] == asked
        for each in given:
            # A fault is not a score, and what was scored is in its report.
            assert (each["state"] == "report") == (each["reward"] is not None) == (each["report"] is not None), each
            assert each["state"] == "report" or each["reason"]
            if each["report"] is not None:
                gained = each["report"]["after"]["scores"]["loglik"] - each["report"]["before"]["scores"]["loglik"]
                assert each["reward"] == pytest.approx(gained)
        scored = {name: [each["reward"] for each in given if each["student"] == name] for name in students}
        kept = [[value for value in values if value is not None] for values in scored.values()]
        worst = min(sum(values) / len(values) for values in kept) if all(kept) else None
        assert candidate["reward"] == (None if worst is None else pytest.approx(worst)), candidate
    assert [each["round"] for each in tree["updates"]] == list(range(1, rounds + 1))
    # A run whose every evaluation failed would hold all of this; a few faults do not make that of it.
    assert any(candidate["reward"] is not None for candidate in tree["candidates"])
    for earlier, later in itertools.pairwise(each["result"] for each in tree["updates"]):
        # An update that kept nothing leaves the policy as it was.
        came_from = later["policy"]["parent_version" if later["updated"] else "version"]
        assert came_from == earlier["policy"]["version"]
    assert [(each["student"], each["task_id"]) for each in tree["commits"]] == [
        (name, task) for name in students for task in sorted(tasks)
    ]


@pytest.mark.timeout(7200)
@pytest.mark.skipif(not WHOLE, reason="other settings belong to the whole (TUTELAGE_FAULTS=60)")
@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
def test_whatever_the_settings_no_reward_is_lost_doubled_or_invented(
    url: str, make_stack: Callable[..., Any], breaker: Any
) -> None:
    stack = make_stack("loose", url, deterministic=False)
    hand = breaker(stack, SEED + 1)
    kills = max(1, KILLS // 3)
    print(f"\n{kills} kills, overlapping rounds, seed {SEED} (TUTELAGE_FAULTS_SEED)", flush=True)
    for number in itertools.count(1):
        start(stack, f"loose-{number}", LOOSE, number)
        summary = broken_while_it_runs(stack, hand, f"loose-{number}", min(kills, hand.killed + KILLS_OF_A_RUN))
        assert summary.state is RunState.DONE, (SEED, hand.broken, summary)
        no_reward_is_lost_doubled_or_invented(told(stack, f"loose-{number}"))
        print(f"  run {number} ended in order, after {len(hand.broken)} faults", flush=True)
        if hand.killed >= kills:
            break
    everything_was_broken(stack, hand, kills)
