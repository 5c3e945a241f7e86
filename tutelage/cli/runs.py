"""`tutelage run`: start, watch, list, show and cancel runs, and fetch their reports."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage.cli.connection import DEFAULT_ORCHESTRATOR, AsJson, Orchestrator, orchestrator_client
from tutelage.cli.listing import print_json, print_table
from tutelage.cli.rewards import run_rewards
from tutelage.domain.run import ReportFormat, RunState

if TYPE_CHECKING:
    from tutelage.cli.run_file import PreparedRun, WrongRun
    from tutelage.domain.errors import InvalidInput
    from tutelage.domain.run import RunPlan, RunSummary

app = typer.Typer(help="Runs of the reinforcement learning.", no_args_is_help=True)

RunId = Annotated[str, typer.Argument(metavar="ID", help="The run's id.")]
Patience = Annotated[float, typer.Option(help="Seconds to wait for an orchestrator that went away.")]


def new_run_id(name: str) -> str:
    """An id from the run's name and the time (UTC), 64 characters of a-z, 0-9, - and _ at most."""
    stem = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-") or "run"
    return f"{stem[:48]}-{datetime.now(UTC):%Y%m%d-%H%M%S}"


@app.command()
def start(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run's settings.")],
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    run_id: Annotated[str | None, typer.Option(help="The run's id; the same id attaches to the same run.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the settings and the work, and start nothing.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the run to its end.")] = False,
    patience_s: Patience = 600.0,
    as_json: AsJson = False,
) -> None:
    """Start a run: the files it names are read here and sent along."""
    from tutelage.cli.run_file import WrongRun, prepare_run, resolved_yaml

    try:
        prepared = prepare_run(run_file)
    except WrongRun as wrong:
        raise asyncio.run(_all_wrong(orchestrator, wrong)) from None
    if dry_run:
        planned, why_not = asyncio.run(_planned(orchestrator, prepared))
        if as_json:
            counts = {"tasks": len(prepared.tasks), "evaluations": prepared.evaluations}
            print_json({"config": prepared.config.model_dump(mode="json"), **counts, "plan": planned})
            return
        typer.echo(resolved_yaml(prepared.config), nl=False)
        questions = sum(len(task.quiz.questions) for task in prepared.tasks)
        typer.echo(
            f"# {len(prepared.tasks)} tasks, {questions} questions, "
            f"{len(prepared.retention_quiz.questions)} retention questions, {prepared.evaluations} evaluations"
        )
        typer.echo(_plan_text(planned, why_not))
        return
    identity = run_id or new_run_id(prepared.config.name)
    if prepared.config.commit.max_retention_loss is not None and not prepared.retention_quiz.questions:
        typer.echo("no retention quiz: commit.max_retention_loss keeps nothing out", err=True)

    async def call() -> RunSummary:
        async with orchestrator_client(orchestrator) as client:
            summary, created = await client.start_run(
                identity, prepared.config_yaml, prepared.tasks, prepared.retention_quiz
            )
            if not as_json:
                typer.echo(f"{'started' if created else 'attached to'} run {identity}")
            if watch:
                summary = await _follow(client, identity, patience_s, as_json)
            if as_json:
                print_json({"run": summary, "created": created})
            return summary

    _exit_with(asyncio.run(call()), watch)


async def _all_wrong(orchestrator: str, wrong: WrongRun) -> InvalidInput:
    """With what the orchestrator finds in the rest of the run, where it answers: all errors are told at once."""
    from tutelage.domain.errors import InvalidInput, TutelageError

    rest = wrong.rest
    try:
        async with orchestrator_client(orchestrator) as client:
            await client.plan_run("check", rest.config_yaml, rest.tasks, rest.retention_quiz)
    except InvalidInput as error:
        return wrong.and_told(error.violations)
    except TutelageError:
        pass
    return wrong


async def _planned(orchestrator: str, prepared: PreparedRun) -> tuple[RunPlan | None, str]:
    """The plan of the orchestrator that would run it, or why there is none; what it finds wrong is raised."""
    from tutelage.domain.errors import Unavailable

    try:
        async with orchestrator_client(orchestrator) as client:
            plan = await client.plan_run("dry-run", prepared.config_yaml, prepared.tasks, prepared.retention_quiz)
            return plan, ""
    except Unavailable as error:
        return None, str(error)


def _plan_text(plan: RunPlan | None, why_not: str) -> str:
    from tutelage.cli.watching import duration_text

    if plan is None:
        return f"# not checked with an orchestrator and its students: {' '.join(why_not.split())}"
    time = "not known: nothing was timed yet" if plan.seconds is None else f"about {duration_text(plan.seconds)}"
    return f"# {plan.groups} groups of candidates, {plan.updates} updates of the teacher; time {time}"


async def _follow(client: object, run_id: str, patience_s: float, as_json: bool) -> RunSummary:
    """Shows how the run goes; where JSON is printed, on standard error, which leaves standard output to it."""
    from rich.console import Console

    from tutelage.cli.watching import follow_on, left_running

    with left_running(run_id):
        return await follow_on(Console(stderr=as_json), client, run_id, patience_s)  # type: ignore[arg-type]


def _exit_with(summary: RunSummary, watched: bool) -> None:
    if not watched or summary.state is RunState.DONE:
        return
    typer.echo(f"run {summary.run_id} {summary.state.value}: {summary.message}", err=True)
    raise typer.Exit(1)


@app.command("watch")
def watch_run(
    run_id: RunId,
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    patience_s: Patience = 600.0,
    as_json: AsJson = False,
) -> None:
    """Follow a run to its end, through restarts of the orchestrator."""

    async def call() -> RunSummary:
        async with orchestrator_client(orchestrator) as client:
            return await _follow(client, run_id, patience_s, as_json)

    summary = asyncio.run(call())
    if as_json:
        print_json(summary)
    _exit_with(summary, watched=True)


@app.command("list")
def list_runs(orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR, as_json: AsJson = False) -> None:
    """List the runs that the orchestrator knows."""

    async def call() -> tuple[RunSummary, ...]:
        async with orchestrator_client(orchestrator) as client:
            return tuple(await client.list_runs())

    runs = asyncio.run(call())
    if as_json:
        print_json(runs)
        return
    rows = [
        (
            run.run_id,
            run.state.value,
            f"{run.round}/{run.rounds} {run.phase.value}",
            f"{run.evaluations_done}/{run.evaluations_total}",
            "" if run.mean_reward is None else f"{run.mean_reward:+.3f}",
            f"{run.created_at:%Y-%m-%d %H:%M}",
        )
        for run in runs
    ]
    print_table(("run", "state", "round", "evaluations", "mean reward", "created (UTC)"), rows, "no runs yet")


@app.command()
def show(run_id: RunId, orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR, as_json: AsJson = False) -> None:
    """Show one run and its settings."""

    async def call() -> tuple[RunSummary, str]:
        async with orchestrator_client(orchestrator) as client:
            return await client.get_run(run_id)

    summary, config_yaml = asyncio.run(call())
    if as_json:
        print_json({"run": summary, "config_yaml": config_yaml})
        return
    from tutelage.cli.watching import summary_text

    typer.echo(f"{summary.run_id}: {summary_text(summary)}")
    if summary.message:
        typer.echo(summary.message)
    typer.echo(f"policy version {summary.policy_version or '(untouched)'}\n\n{config_yaml}", nl=False)


@app.command()
def cancel(run_id: RunId, orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR, as_json: AsJson = False) -> None:
    """Stop a run; what it earned so far stays."""

    async def call() -> RunSummary:
        async with orchestrator_client(orchestrator) as client:
            return await client.cancel_run(run_id)

    summary = asyncio.run(call())
    if as_json:
        print_json(summary)
    else:
        typer.echo(f"run {summary.run_id} is {summary.state.value}")


def _print_state(summary: RunSummary, as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        typer.echo(f"run {summary.run_id} is {summary.state.value}, round {summary.round}/{summary.rounds}")


@app.command()
def pause(run_id: RunId, orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR, as_json: AsJson = False) -> None:
    """Begin nothing new in a run; what students are at is finished."""

    async def call() -> RunSummary:
        async with orchestrator_client(orchestrator) as client:
            return await client.pause_run(run_id)

    _print_state(asyncio.run(call()), as_json)


@app.command()
def resume(run_id: RunId, orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR, as_json: AsJson = False) -> None:
    """Go on with a run that is paused or has failed."""

    async def call() -> RunSummary:
        async with orchestrator_client(orchestrator) as client:
            return await client.resume_run(run_id)

    _print_state(asyncio.run(call()), as_json)


@app.command()
def extend(
    run_id: RunId,
    rounds: Annotated[int, typer.Option(help="Rounds to add.", min=1)],
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    as_json: AsJson = False,
) -> None:
    """Add rounds to a run, also to one that is done."""

    async def call() -> RunSummary:
        async with orchestrator_client(orchestrator) as client:
            return await client.extend_run(run_id, rounds)

    _print_state(asyncio.run(call()), as_json)


@app.command()
def clone(
    run_id: RunId,
    new_id: Annotated[str, typer.Argument(metavar="NEW_ID", help="The new run's id.")],
    changes: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="YAML file with the settings to change; grader_weights and options as a whole.",
        ),
    ] = None,
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    as_json: AsJson = False,
) -> None:
    """Start a run with the tasks and settings of another, but for the changes."""
    from tutelage.settings import read_yaml

    text = read_yaml(changes) if changes else ""

    async def call() -> tuple[RunSummary, bool]:
        async with orchestrator_client(orchestrator) as client:
            return await client.clone_run(run_id, new_id, text)

    _print_state(asyncio.run(call())[0], as_json)


@app.command()
def report(
    run_id: RunId,
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; standard output if not given.")
    ] = None,
    format: Annotated[ReportFormat, typer.Option(help="html, json, csv, or metrics (JSON lines).")] = ReportFormat.HTML,
) -> None:
    """Fetch a run's report, of a finished run or of one under way."""

    async def call() -> bytes:
        async with orchestrator_client(orchestrator) as client:
            return await client.get_report(run_id, format)

    _deliver(asyncio.run(call()), output)


@app.command("compare")
def compare_runs(
    run_id: Annotated[str, typer.Argument(metavar="A", help="The run that is compared with.")],
    other_run_id: Annotated[str, typer.Argument(metavar="B", help="The other run; differences are B less A.")],
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; standard output if not given.")
    ] = None,
    format: Annotated[ReportFormat, typer.Option(help="html or json.")] = ReportFormat.HTML,
) -> None:
    """Put two runs side by side, with the 95 % intervals of their differences."""

    async def call() -> bytes:
        async with orchestrator_client(orchestrator) as client:
            return await client.compare_runs(run_id, other_run_id, format)

    _deliver(asyncio.run(call()), output)


app.command("rewards")(run_rewards)


def _deliver(content: bytes, output: Path | None) -> None:
    if output is None:
        typer.echo(content, nl=False)
    else:
        output.write_bytes(content)
        typer.echo(f"wrote {output} ({len(content)} bytes)", err=True)
