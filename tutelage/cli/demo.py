"""`tutelage demo`: the whole circle on one machine, with real processes that talk gRPC, in minutes."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tutelage.cli import demo_results
from tutelage.cli.demo_settings import (
    DEFAULT_MODEL,
    RUN_ID,
    THREADS,
    ServiceFiles,
    run_file,
    write_model_services,
    write_orchestrator,
)
from tutelage.cli.interrupts import Interrupts
from tutelage.domain.errors import InvalidInput, PreconditionFailed, Unavailable
from tutelage.domain.run import ReportFormat, RunState

if TYPE_CHECKING:
    from rich.console import Console

    from tutelage.cli.processes import ServiceProcess, ServiceProcesses
    from tutelage.cli.run_file import PreparedRun
    from tutelage.domain.run import LogicalStudent, RunSummary

_MARKER = ".tutelage-demo"
_READY_TIMEOUT_S = 300.0
_EXIT_INTERRUPTED = 130


def demo(
    dir: Annotated[
        Path | None, typer.Option("--dir", help="Where the demo works; emptied at its start. Else var/demo.")
    ] = None,
    model: Annotated[str, typer.Option(help="Model of the teacher and of both students.")] = DEFAULT_MODEL,
) -> None:
    """Run the whole circle here: one teacher, two students, one orchestrator, two rounds."""
    from rich.console import Console

    console = Console(highlight=False)
    try:
        # Whatever asks to end ends the services too.
        with Interrupts() as interrupts:
            from tutelage.cli.run_file import prepare_run

            prepared = prepare_run(run_file())
            with _work_folder(dir) as folder:
                _run_demo(console, folder, model, prepared, interrupts)
    except KeyboardInterrupt:
        console.print("interrupted; all services are stopped")
        raise typer.Exit(_EXIT_INTERRUPTED) from None


@contextmanager
def _work_folder(asked: Path | None) -> Iterator[Path]:
    """An empty folder that this demo alone uses; only a folder made by an earlier demo is ever emptied."""
    folder = (asked or _default_folder()).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / _MARKER
    if not marker.exists() and any(folder.iterdir()):
        raise InvalidInput.of("--dir", folder, "an empty folder, or one that an earlier demo made")
    with marker.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise PreconditionFailed(f"another demo is running in {folder}; give this one its own --dir") from None
        for item in folder.iterdir():
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            elif item != marker:
                item.unlink()
        yield folder


def _default_folder() -> Path:
    """`var/demo` of a checkout, so that results are easy to find; else under the system's temporary folder."""
    import tutelage

    root = Path(tutelage.__file__).resolve().parents[1]
    if (root / "pyproject.toml").is_file():
        return root / "var" / "demo"
    return Path(tempfile.gettempdir()) / "tutelage-demo"


def _pull(console: Console, model: str) -> None:
    """Brings the model into the cache, in a process of its own: converting needs memory that goes back at its end."""
    from tutelage.cli.processes import run_to_end

    console.print(f"1. model {model} ...")
    if run_to_end([sys.executable, "-m", "tutelage.cli.main", "models", "pull", model]) != 0:
        raise Unavailable(f"the model {model!r} could not be brought here (see above)")


def _run_demo(console: Console, folder: Path, model: str, prepared: PreparedRun, interrupts: Interrupts) -> None:
    from tutelage.cli.processes import ServiceProcesses

    begun = time.monotonic()
    _pull(console, model)
    with ServiceProcesses(THREADS) as processes:
        console.print(
            f"2. services: a teacher, {len(prepared.config.students)} students, an orchestrator (logs in {folder}) ...",
            soft_wrap=True,
        )
        address = _start_services(processes, folder, model, prepared.config.students)
        console.print(f"   ready after {time.monotonic() - begun:.0f} s; orchestrator at {address}")
        interrupts.run(_circle(console, processes, folder, address, prepared))
        console.print("stopping the services ...")
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    console.print(f"done in {minutes} min {seconds:02} s; nothing is left running")


def _start_services(processes: ServiceProcesses, folder: Path, model: str, names: Sequence[str]) -> str:
    """Starts all services and returns the orchestrator's address."""

    def start(files: ServiceFiles) -> ServiceProcess:
        return processes.start(files.name, files.room, files.config, files.ready_file, files.log)

    teacher_files, student_files = write_model_services(folder, model, names)
    teacher, students = start(teacher_files), [start(files) for files in student_files]
    processes.wait_ready([teacher, *students], _READY_TIMEOUT_S)
    addresses = {name: student.address for name, student in zip(names, students, strict=True)}
    orchestrator = start(write_orchestrator(folder, teacher.address, addresses))
    processes.wait_ready([orchestrator], _READY_TIMEOUT_S)
    return orchestrator.address


async def _circle(
    console: Console, processes: ServiceProcesses, folder: Path, address: str, prepared: PreparedRun
) -> None:
    from tutelage.cli.connection import orchestrator_client

    console.print(
        f"3. run: {len(prepared.tasks)} documents, {prepared.config.candidates} self-edits each, "
        f"{prepared.config.rounds} rounds, {prepared.evaluations} evaluations, then commits"
    )
    async with orchestrator_client(address) as client:
        await client.start_run(RUN_ID, prepared.config_yaml, prepared.tasks, prepared.retention_quiz)
        summary = await _follow(console, processes, client)
        page, tree = folder / "report.html", folder / "report.json"
        page.write_bytes(await client.get_report(RUN_ID, ReportFormat.HTML))
        tree.write_bytes(await client.get_report(RUN_ID, ReportFormat.JSON))
        (folder / "metrics.jsonl").write_bytes(await client.get_report(RUN_ID, ReportFormat.METRICS))
        students = {student.name: student for student in await client.list_students()}
    report = demo_results.report_tree(tree.read_bytes())
    console.print()
    demo_results.show_edit(console, report)
    demo_results.show_scores(console, report)
    await _ask_before_and_after(console, report, prepared, students)
    console.print(f"report: {page}", soft_wrap=True)
    if summary.state is not RunState.DONE:
        raise Unavailable(f"the run ended as {summary.state.value}: {summary.message}")


async def _follow(console: Console, processes: ServiceProcesses, client: Any) -> RunSummary:
    """Follows the run; a service that ends meanwhile ends the demo with the end of its log."""
    from tutelage.cli.watching import follow_on

    following = asyncio.ensure_future(follow_on(console, client, RUN_ID, patience_s=30.0))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=1.0)
            if done:
                return following.result()
            processes.check()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def _ask_before_and_after(
    console: Console, report: dict[str, Any], prepared: PreparedRun, students: dict[str, LogicalStudent]
) -> None:
    from tutelage.cli.ask import answer_of

    shown = demo_results.question_to_show(report, prepared.tasks)
    if shown is None:
        return
    student, question = students[shown.student], shown.question
    before = await answer_of(student, question.text, question.topic, "")
    after = await answer_of(student, question.text, question.topic, student.current_adapter_version)
    why = "the question that gained most" if shown.commit else "nothing was kept, so both answers are the base model's"
    lines = [
        f"{shown.student} was asked ({why}): {question.text}",
        f"  before: {before.strip()}",
        f"  after:  {after.strip()}",
        f"  right:  {question.answer}",
    ]
    console.print("\n".join(lines), markup=False)
    console.print()
