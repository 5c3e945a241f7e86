"""`tutelage teacher|student|orchestrator serve`: each command imports its own service, and only when it is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path, typer.Option("--config", help="YAML file with the service's settings.")]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", "--dry-run", help="Print the resolved settings as YAML and stop.")
]

_SETTINGS = {"teacher": "TeacherSettings", "student": "StudentSettings", "orchestrator": "OrchestratorSettings"}


def resolved_settings(room: str, config: Path) -> Any:
    """The settings of a service from its file; InvalidInput names every wrong field."""
    from tutelage.settings import load_settings

    return load_settings(config, getattr(import_module(f"{room}.config"), _SETTINGS[room]))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; PreconditionFailed when another one has it. The kernel frees it at any end."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".in-use")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        from tutelage.domain.errors import PreconditionFailed

        hint = "each teacher and each student has a data_dir of its own"
        raise PreconditionFailed(f"data_dir {folder} is in use by another process; {hint}") from None
    try:
        yield
    finally:
        lock.release()


def _serve(room: str, config: Path, print_config: bool) -> None:
    settings = resolved_settings(room, config)
    if print_config:
        import yaml

        typer.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), nl=False)
        return
    if room == "orchestrator":
        # It keeps everything in its database, which settles who does what.
        _run(room, settings)
        return
    with alone_in(settings.data_dir):
        _run(room, settings)


def _run(room: str, settings: Any) -> None:
    try:
        run = import_module(f"{room}.main").run
    except ModuleNotFoundError as error:
        from tutelage.domain.errors import PreconditionFailed

        install = f"pip install 'tutelage[{room}]'" if room != "orchestrator" else "pip install tutelage"
        raise PreconditionFailed(f"the {room} needs {error.name!r}, which is not installed: {install}") from None
    run(settings)


teacher = typer.Typer(help="The service that writes self-edits and learns from rewards.", no_args_is_help=True)
student = typer.Typer(help="The service that studies self-edits and takes quizzes.", no_args_is_help=True)
orchestrator = typer.Typer(help="The service that runs the reinforcement learning.", no_args_is_help=True)


@teacher.callback()
@student.callback()
@orchestrator.callback()
def _group() -> None:
    """Keeps `serve` a command of its own."""


@teacher.command("serve")
def serve_teacher(config: Config, print_config: PrintConfig = False) -> None:
    """Serve a teacher until SIGTERM or SIGINT."""
    _serve("teacher", config, print_config)


@student.command("serve")
def serve_student(config: Config, print_config: PrintConfig = False) -> None:
    """Serve a student until SIGTERM or SIGINT."""
    _serve("student", config, print_config)


@orchestrator.command("serve")
def serve_orchestrator(config: Config, print_config: PrintConfig = False) -> None:
    """Serve an orchestrator until SIGTERM or SIGINT."""
    _serve("orchestrator", config, print_config)
