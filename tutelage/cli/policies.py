"""`tutelage policies`: what a teacher has learnt, version by version; which one is promoted; and one to take away."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli.connection import AsJson, channel_settings
from tutelage.cli.listing import print_json, print_table
from tutelage.domain.errors import InvalidInput, PreconditionFailed
from tutelage.domain.policy import WITH_DIRECTIVES, PolicyForm, format_by_name

if TYPE_CHECKING:
    from tutelage.client import TeacherClient
    from tutelage.domain.description import TeacherDescription
    from tutelage.domain.policy import Candidate, Format, Policy, Promotion
    from tutelage.domain.task import Task

app = typer.Typer(help="Versions of the teacher's policy.", no_args_is_help=True)

Teacher = Annotated[
    str,
    typer.Option(
        "--teacher",
        envvar="TUTELAGE_TEACHER",
        help="Address of the teacher, host:port. TLS and token: TUTELAGE_CA, TUTELAGE_CERTIFICATE, TUTELAGE_KEY "
        "and TUTELAGE_TOKEN_FILE name files.",
    ),
]
DEFAULT_TEACHER = "127.0.0.1:7071"
Version = Annotated[str, typer.Argument(help="A version or its beginning, `initial`, `latest` or `promoted`.")]


def _client(address: str) -> TeacherClient:
    from tutelage.client import TeacherClient

    return TeacherClient(channel_settings(address))


def _short(version: str) -> str:
    return version[:12]


async def full_policy_version(client: TeacherClient, wanted: str) -> str:
    """The version that a name or a unique beginning means; InvalidInput lists the versions there are."""
    policies = await client.list_policies()
    named = {"initial": policies[0].version, "latest": policies[-1].version}
    if wanted == "promoted":
        return (await client.promotion()).version
    if wanted in named:
        return named[wanted]
    matches = [policy.version for policy in policies if policy.version.startswith(wanted)]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(["initial", "latest", "promoted", *(_short(policy.version) for policy in policies)])
    raise InvalidInput.of("version", wanted, f"one of {known}")


@app.command("list")
def list_policies(teacher: Teacher = DEFAULT_TEACHER, as_json: AsJson = False) -> None:
    """List the versions, oldest first; the promoted one is marked."""

    async def call() -> tuple[tuple[Policy, ...], Promotion]:
        async with _client(teacher) as client:
            return await client.list_policies(), await client.promotion()

    policies, promotion = asyncio.run(call())
    if as_json:
        print_json({"policies": policies, "promotion": promotion})
        return
    rows = [
        (
            _short(policy.version) + (" *" if policy.version == promotion.version else ""),
            _short(policy.parent_version) or "(the untouched model)",
            policy.algorithm,
            policy.run_id,
            policy.round or "",
            f"{policy.created_at:%Y-%m-%d %H:%M}",
        )
        for policy in policies
    ]
    print_table(("version (* promoted)", "parent", "algorithm", "run", "round", "made (UTC)"), rows, "no policies")


@app.command()
def show(version: Version, teacher: Teacher = DEFAULT_TEACHER, as_json: AsJson = False) -> None:
    """Show a version: where it comes from, its shape and size."""

    async def call() -> Any:
        async with _client(teacher) as client:
            return await client.describe_policy(await full_policy_version(client, version))

    details = asyncio.run(call())
    if as_json:
        print_json(details)
        return
    policy = details.policy
    rows = [
        ("version", policy.version + (" (promoted)" if details.promoted else "")),
        ("made", f"{policy.created_at:%Y-%m-%d %H:%M:%S} UTC"),
        ("algorithm", policy.algorithm or "none: the untouched model"),
        ("run and round", f"{policy.run_id} {policy.round}" if policy.run_id else ""),
        ("ancestors", ", ".join(map(_short, details.ancestors))),
        ("learnt from", _short(policy.data_hash)),
        ("LoRA", f"rank {details.rank}, alpha {details.alpha:g}" if details.rank else "none"),
        ("on", ", ".join(details.target_modules)),
        ("size", f"{details.bytes / 2**20:.1f} MiB" if details.bytes else ""),
    ]
    print_table(("", ""), [row for row in rows if row[1]], "")


def chosen_format(name: str, run: Path | None, teacher: TeacherDescription) -> Format:
    """The format of that name, or that of a run's file, or the teacher's first."""
    if run is not None:
        from orchestrator.run_config import RunConfig
        from orchestrator.run_violations import resolve_format
        from tutelage.settings import load_settings

        if name:
            raise InvalidInput.of("format", name, "nothing beside a run, whose format is taken")
        found = resolve_format(load_settings(run, RunConfig), teacher)
        told = [place for place in ("{student}", "{mistakes}") if place in found.prompt]
        if told:
            raise InvalidInput.of("config.format", found.name, f"a format without {told[0]}, which a run fills in")
        return found
    names = [known.name for known in teacher.formats]
    known = format_by_name(name or next(iter(names), ""), teacher.formats)
    if known is None:
        raise InvalidInput.of("format", name, f"one of {', '.join(names)}, with {WITH_DIRECTIVES} behind it or without")
    return known


@app.command()
def diff(
    first: Version,
    second: Version,
    document: Annotated[Path, typer.Option(help="A text file, or a file with tasks (.jsonl, .json).")],
    task: Annotated[str | None, typer.Option(help="Id of the task in a file with tasks; else the first.")] = None,
    format_name: Annotated[
        str,
        typer.Option(
            "--format", help="One of the teacher's formats (+directives behind it: with directives); else its first."
        ),
    ] = "",
    run: Annotated[Path | None, typer.Option(help="A run's YAML, whose format is taken, its own or by name.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Self-edits of each version.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, help="0 writes what is most probable.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest self-edit, in tokens.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of both.")] = 0,
    teacher: Teacher = DEFAULT_TEACHER,
    as_json: AsJson = False,
) -> None:
    """Let two versions write about the same document, with the same seed."""
    from tutelage.domain.policy import Sampling

    given = document_task(document, task)

    async def call() -> dict[str, list[Candidate]]:
        async with _client(teacher) as client:
            chosen = chosen_format(format_name, run, await client.describe())
            written = {}
            versions = [await full_policy_version(client, wanted) for wanted in (first, second)]
            if versions[0] == versions[1]:
                allowed = f"another version than {first}: both are {_short(versions[0])}"
                raise InvalidInput.of("second", second, allowed)
            for version in versions:
                stream = client.write_self_edits(
                    given,
                    format=chosen,
                    candidates=candidates,
                    sampling=Sampling(temperature, 1.0, max_new_tokens),
                    policy_version=version,
                    seed=seed,
                )
                written[version] = sorted([item async for item in stream], key=lambda item: item.index)
            return written

    written = asyncio.run(call())
    if as_json:
        print_json({version: [_plain(item) for item in items] for version, items in written.items()})
        return
    for version, items in written.items():
        for item in items:
            typer.secho(f"--- {_short(version)}  {_outcome(item)}", bold=True)
            typer.echo(item.text.strip() + "\n")


def document_task(path: Path, task_id: str | None) -> Task:
    """A document to write about, without its quiz. InvalidInput for a file without text or without that task."""
    from tutelage.documents import read_tasks
    from tutelage.domain.task import DocumentTask, Task

    if path.suffix in (".jsonl", ".json"):
        tasks = {item.task.id: item.task for item in read_tasks(path, unasked=True)}
        wanted = task_id if task_id is not None else next(iter(tasks), "")
        if wanted not in tasks:
            raise InvalidInput.of("task", wanted, f"a task of {path}: " + ", ".join(list(tasks)[:20]))
        return tasks[wanted]
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInput.of("document", path, "a file of UTF-8 text") from None
    if not text.strip():
        raise InvalidInput.of("document", path, "a file with text")
    return Task(path.stem, DocumentTask(path.stem, text))


def _outcome(candidate: Candidate) -> str:
    from tutelage.domain.self_edit import SelfEdit

    if isinstance(candidate.result, SelfEdit):
        return f"{len(candidate.result.documents)} documents, {candidate.completion_tokens} tokens"
    return f"rejected: {candidate.result.reason.value} {candidate.result.message}"


def _plain(candidate: Candidate) -> dict[str, object]:
    return {
        "text": candidate.text,
        "tokens": candidate.completion_tokens,
        "seed": candidate.seed,
        "result": candidate.result,
    }


def _promote(teacher: str, choose: Any, as_json: bool) -> None:
    async def call() -> Promotion:
        async with _client(teacher) as client:
            now = await client.promotion()
            return await client.promote_policy(now.version, await choose(client, now))

    made = asyncio.run(call())
    if as_json:
        print_json(made)
    else:
        typer.echo(f"promoted: {_short(made.version)}")


@app.command()
def promote(version: Version, teacher: Teacher = DEFAULT_TEACHER, as_json: AsJson = False) -> None:
    """Make a version the promoted one; runs that say `policy: promoted` begin with it."""

    async def choose(client: TeacherClient, now: Promotion) -> str:
        return await full_policy_version(client, version)

    _promote(teacher, choose, as_json)


@app.command()
def rollback(teacher: Teacher = DEFAULT_TEACHER, as_json: AsJson = False) -> None:
    """Promote again what was promoted before."""

    async def choose(client: TeacherClient, now: Promotion) -> str:
        if not now.previous_versions:
            raise PreconditionFailed("nothing was promoted before: there is nothing to go back to")
        return now.previous_versions[0]

    _promote(teacher, choose, as_json)


@app.command()
def export(
    version: Version,
    folder: Annotated[Path, typer.Argument(help="The new folder.")],
    form: Annotated[PolicyForm, typer.Option("--as", help="A LoRA for PEFT, or the whole model.")] = PolicyForm.PEFT,
    teacher: Teacher = DEFAULT_TEACHER,
    as_json: AsJson = False,
) -> None:
    """Write a version to a new folder: its LoRA in PEFT's format, or the whole model with the LoRA merged in."""
    from tutelage.client.exported import ExportFolder

    async def call() -> Any:
        async with _client(teacher) as client:
            full = await full_policy_version(client, version)
            with ExportFolder(folder) as made:
                async for part in client.export_policy(full, form):
                    made.write(part)
            return made.files

    files = asyncio.run(call())
    if as_json:
        print_json({"folder": folder, "files": files})
    else:
        size = sum(file.bytes for file in files)
        typer.echo(f"{folder}: {len(files)} files, {size / 2**20:.1f} MiB")
