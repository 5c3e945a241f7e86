"""A run's machine from the store's rows, as it stood when the last of them was written."""

from __future__ import annotations

from orchestrator.machine import Machine
from orchestrator.plan import Group
from orchestrator.records import Run
from orchestrator.run_events import Evaluated, Fact, GroupWritten, PolicyUpdated, RunEnded
from orchestrator.store import Store


async def rebuild(run: Run, store: Store) -> Machine:
    """The machine after all facts that are stored."""
    plan = run.plan
    facts: list[tuple[tuple[int, int], Fact]] = []
    groups: dict[Group, list[str | None]] = {}
    for round_, task, index, edit in await store.edits(run.run_id):
        audience = plan.audiences[index // plan.candidates]
        groups.setdefault(Group(round_, task, audience), []).append(edit)
    # The order in which facts of strict rounds are made; with groups written ahead the machine takes it as well.
    facts += [((group.round, 0), GroupWritten(group, tuple(edits))) for group, edits in groups.items()]
    ended = await store.ended(run.run_id)
    facts += [((work.round, 1), Evaluated(work, reward, state == "rejected")) for work, state, reward, _ in ended]
    facts += [((item.round, 2), PolicyUpdated(item.round, item.version)) for item in await store.updates(run.run_id)]
    committed = [(row["student"], row["task_id"]) for row in await store.commits(run.run_id)]
    machine = Machine(plan, run.policy_version, committed)
    for _, fact in sorted(facts, key=lambda item: item[0]):
        machine.feed(fact)
    if run.state.ended:
        machine.feed(RunEnded(run.state))
    return machine
