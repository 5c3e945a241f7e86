"""`tutelage adapt`: documents for students; what is committed, what is left alone, and why."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.connection import DEFAULT_ORCHESTRATOR, AsJson, Orchestrator, orchestrator_client
from tutelage.cli.listing import print_json, print_table
from tutelage.cli.quiz import Making, made_in_groups
from tutelage.domain.made_quiz import QuizCheck
from tutelage.domain.run import RunEvent, RunState

if TYPE_CHECKING:
    from orchestrator.adapt_config import AdaptConfig
    from tutelage.client import OrchestratorClient
    from tutelage.domain.run import RunSummary, TaskWithQuiz
    from tutelage.domain.task import Quiz


@dataclass(frozen=True)
class Decision:
    """What became of one document in one student."""

    student: str
    task_id: str
    committed: bool
    reason: str
    version: str
    """The version made of it; empty when the student was left alone."""
    before: dict[str, float]
    after: dict[str, float]
    """Scores of the version as stored, or of the best candidate; empty when none was scored."""
    fault: bool = False
    """Whether a fault, and no gate, kept the student from learning it."""

    @property
    def outcome(self) -> str:
        """In a word or two."""
        return "committed" if self.committed else "not decided" if self.fault else "left alone"


def decision_of(event: RunEvent) -> Decision | None:
    """The decision that an event tells, if it tells one."""
    if event.kind not in ("committed", "not_committed"):
        return None
    detail: dict[str, Any] = event.detail
    return Decision(
        student=str(detail["student"]),
        task_id=str(detail["task_id"]),
        committed=event.kind == "committed",
        reason=str(detail["reason"]),
        version=str(detail["version"]),
        before=dict(detail["before"]),
        after=dict(detail["after"]),
        fault=bool(detail["fault"]),
    )


def decision_rows(decisions: list[Decision], titles: dict[str, str], graders: list[str]) -> list[tuple[str, ...]]:
    """The table of decisions: document by document, its students below each other."""
    order = {task_id: number for number, task_id in enumerate(titles)}
    rows = []
    for item in sorted(decisions, key=lambda item: (order.get(item.task_id, len(order)), item.student)):
        scores = [
            f"{item.before[name]:.2f} > {item.after[name]:.2f}" if name in item.before and name in item.after else "-"
            for name in graders
        ]
        why = f"version {item.version[:12]}" if item.committed else item.reason
        rows.append((titles.get(item.task_id, item.task_id), item.student, item.outcome, *scores, why))
    return rows


def prepare(
    documents: Path | None, settings: Path | None, overrides: dict[str, Any]
) -> tuple[AdaptConfig, tuple[TaskWithQuiz, ...], Quiz]:
    """The settings of a file, changed by what was given on the command line, and what its files hold."""
    import yaml

    from orchestrator.adapt_config import AdaptConfig
    from tutelage.documents import read_quiz, read_tasks
    from tutelage.domain.errors import InvalidInput
    from tutelage.domain.task import Quiz as NoQuiz
    from tutelage.settings import load_settings, parse_settings

    if settings is not None:
        values = load_settings(settings, AdaptConfig).model_dump(mode="json", exclude_unset=True)
        for name in ("documents", "retention_quiz"):
            # Paths in a file are relative to the file; those of the command line to where it is called.
            if values.get(name) and not Path(values[name]).is_absolute():
                values[name] = str(settings.parent / values[name])
    else:
        values = {}
    if documents is not None:
        values["documents"] = str(documents)
    values |= {name: value for name, value in overrides.items() if value is not None and value != []}
    config = parse_settings(yaml.safe_dump(values), AdaptConfig)
    if config.documents is None:
        raise InvalidInput.of("documents", "nothing", "the path of a file with documents and questions")
    if unmeasured := config.unmeasured():
        raise InvalidInput(unmeasured)
    tasks = tuple(read_tasks(config.documents, config.limit, unasked=config.made_questions > 0))
    return config, tasks, read_quiz(config.retention_quiz) if config.retention_quiz else NoQuiz()


def adapt(
    documents: Annotated[
        Path | None, typer.Argument(metavar="[DOCUMENTS]", help="File with documents and their questions.")
    ] = None,
    settings: Annotated[Path | None, typer.Option("--settings", help="YAML file with a recipe.")] = None,
    student: Annotated[list[str] | None, typer.Option(help="A student that learns; may be given again.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Self-edits a document.")] = None,
    policy: Annotated[str | None, typer.Option(help="Who writes: latest, promoted, initial, or a version.")] = None,
    retention_quiz: Annotated[Path | None, typer.Option(help="File with questions about other things.")] = None,
    make_questions: Annotated[
        int | None, typer.Option(help="Questions to make for a document that has none; see `tutelage quiz`.")
    ] = None,
    made_check: Annotated[
        QuizCheck | None, typer.Option(help="What made questions must pass; see `tutelage quiz --check`.")
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="The run's id; the same id attaches to the same run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the files, print the settings and stop.")] = False,
    patience_s: Annotated[float, typer.Option(help="Seconds to wait for an orchestrator that went away.")] = 600.0,
    orchestrator: Orchestrator = DEFAULT_ORCHESTRATOR,
    as_json: AsJson = False,
) -> None:
    """Let students learn documents: the best of several edits is kept if it passes its gates."""
    from tutelage.cli.runs import new_run_id
    from tutelage.domain.errors import PreconditionFailed

    given = {
        "students": student,
        "candidates": candidates,
        "policy": policy,
        "made_questions": make_questions,
        "made_check": made_check.value if made_check else None,
        "retention_quiz": str(retention_quiz) if retention_quiz else None,
    }
    config, tasks, quiz = prepare(documents, settings, given)
    if dry_run:
        _print_plan(config, tasks, quiz, as_json)
        return
    identity = run_id or new_run_id(config.name)
    if not quiz.questions and not as_json:
        typer.echo("no retention quiz: what the students forget is not measured", err=True)

    async def call() -> tuple[RunSummary, list[Decision]]:
        async with orchestrator_client(orchestrator) as client:
            learned = await _asked(client, tasks, config, patience_s)
            if not learned:
                raise PreconditionFailed("too few questions could be made for any document: nothing is learned")
            _, created = await client.start_run(identity, config.run_yaml(config.name), learned, quiz)
            if not as_json:
                typer.echo(f"{'started' if created else 'attached to'} run {identity}", err=True)
            return await _follow(client, identity, patience_s, quiet=as_json)

    summary, decisions = asyncio.run(call())
    _print_outcome(summary, decisions, tasks, config, as_json)
    faults = sum(item.fault for item in decisions)
    if summary.state is not RunState.DONE:
        typer.echo(f"run {identity} {summary.state.value}: {summary.message}", err=True)
    elif faults:
        typer.echo(f"run {identity}: {faults} of {len(decisions)} not decided, for faults", err=True)
    if summary.state is not RunState.DONE or faults:
        raise typer.Exit(1)


async def _asked(
    client: OrchestratorClient, tasks: tuple[TaskWithQuiz, ...], config: AdaptConfig, patience_s: float
) -> list[TaskWithQuiz]:
    """The tasks with questions made where there were none; those for which too few could be are told and left out."""
    making = Making(config.made_questions, config.seed, config.made_check, patience_s=patience_s)
    learned: list[TaskWithQuiz] = []
    async for group, made in made_in_groups(client, tasks, making):
        for item in group:
            found = made.get(item.task.id)
            if found is None or len(found.quiz.questions) >= config.least_questions:
                learned.append(item)
                continue
            why = f" ({found.told})" if found.told else ""
            typer.echo(f"{item.task.id}: left out, {len(found.quiz.questions)} questions could be made{why}", err=True)
    return learned


async def _follow(client: Any, run_id: str, patience_s: float, *, quiet: bool) -> tuple[RunSummary, list[Decision]]:
    from rich.console import Console

    from tutelage.cli.watching import follow_on, left_running

    decisions: list[Decision] = []

    def told(event: RunEvent) -> None:
        decision = decision_of(event)
        if decision is not None:
            decisions.append(decision)

    console = Console(stderr=True, quiet=quiet)
    with left_running(run_id):
        return await follow_on(console, client, run_id, patience_s, told), decisions


def _print_plan(config: AdaptConfig, tasks: tuple[TaskWithQuiz, ...], quiz: Quiz, as_json: bool) -> None:
    import yaml

    evaluations = len(tasks) * config.candidates * config.evaluation_seeds * len(config.students)
    most = len(tasks) * config.evaluations_per_document
    resolved = config.model_dump(mode="json")
    if as_json:
        print_json({"config": resolved, "documents": len(tasks), "evaluations": evaluations, "at_most": most})
        return
    typer.echo(yaml.safe_dump(resolved, sort_keys=False), nl=False)
    typer.echo(
        f"# {len(tasks)} documents, {len(quiz.questions)} retention questions, {evaluations} evaluations "
        f"({most} at most, where commits train again)"
    )


def _print_outcome(
    summary: RunSummary,
    decisions: list[Decision],
    tasks: tuple[TaskWithQuiz, ...],
    config: AdaptConfig,
    as_json: bool,
) -> None:
    from tutelage.domain.task import DocumentTask

    if as_json:
        print_json({"run": summary, "decisions": decisions})
        return
    titles = {
        item.task.id: item.task.content.title if isinstance(item.task.content, DocumentTask) else item.task.id
        for item in tasks
    }
    graders = [config.gate.grader]
    columns = ("document", "student", "outcome", *graders, "version, or why not")
    print_table(columns, decision_rows(decisions, titles, graders), "nothing was decided")
    count = Counter(item.outcome for item in decisions)
    told = [f"{count['committed']} committed", f"{count['left alone']} left alone"]
    told += [f"{count['not decided']} not decided"] if count["not decided"] else []
    typer.echo(f"{', '.join(told)}; report: tutelage run report {summary.run_id}")
