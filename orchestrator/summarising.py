"""A run as its watchers see it: from whoever drives it here, or from the store."""

from __future__ import annotations

from orchestrator.dispatcher import Dispatcher
from orchestrator.estimate import seconds_left
from orchestrator.meter import share
from orchestrator.rebuilding import rebuild
from orchestrator.records import Run, Tally
from orchestrator.runner import Runner
from orchestrator.store import Store
from tutelage.domain.run import RunPhase, RunState, RunSummary, StudentResult


async def summarise(run: Run, store: Store, runner: Runner | None, dispatcher: Dispatcher) -> RunSummary:
    """The summary now."""
    plan = run.plan
    if runner is not None and runner.restored:
        tally, phase = runner.tally.snapshot(), runner.machine.phase
        round_, version = runner.machine.round, runner.machine.policy_version
    else:
        tally = await store.tally(run.run_id)
        last = await store.latest_update(run.run_id)
        round_, version = (1, run.policy_version) if last is None else (last[0] + 1, last[1])
        phase = RunPhase.ENDED if run.state.ended else (await rebuild(run, store)).phase
    used = await store.utilisation(run.run_id)
    running = run.state is RunState.RUNNING
    return RunSummary(
        run_id=run.run_id,
        state=run.state,
        phase=RunPhase.ENDED if run.state.ended else phase,
        round=min(round_, plan.rounds),
        rounds=plan.rounds,
        evaluations_done=tally.done,
        evaluations_total=plan.evaluations,
        mean_reward=tally.mean_reward,
        seconds_left=_seconds_left(run, round_, tally, dispatcher) if running else None,
        policy_version=version,
        message=run.message or (_away(run, dispatcher) if running else ""),
        created_at=run.created_at,
        finished_at=run.finished_at,
        unscored=tally.unscored,
        rejected=tally.rejected,
        students=tuple(
            StudentResult(
                name,
                tally.students[name].done if name in tally.students else 0,
                tally.students[name].mean_reward if name in tally.students else None,
                share(used.get(f"student/{name}")),
            )
            for name in plan.students
        ),
        teacher_busy=share(used.get("teacher")),
    )


def _away(run: Run, dispatcher: Dispatcher) -> str:
    """Which of the run's students did not answer: it waits for them, or soon will, until they are asked once more."""
    return "; ".join(
        f"student {name!r} did not answer when last asked" for name in run.plan.students if not dispatcher.slots(name)
    )


def _seconds_left(run: Run, round: int, tally: Tally, dispatcher: Dispatcher) -> float | None:
    plan = run.plan
    each = plan.evaluations // len(plan.students)
    done = {name: tally.students[name].done if name in tally.students else 0 for name in plan.students}
    slots = {name: dispatcher.slots(name) for name in plan.students}
    remaining = {name: each - done[name] for name in plan.students}
    return seconds_left(tally.mean_seconds, remaining, slots, 0 if plan.staleness else max(0, plan.rounds - round))
