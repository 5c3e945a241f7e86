"""The command `tutelage`: its commands, and the one place where faults become a message and an exit code.

Nothing heavy is imported here or at the top of a command's module, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tutelage import __version__
from tutelage.cli import adapt, adapters, ask, demo, inbox, models, policies, quiz, runs, services
from tutelage.domain.errors import FieldViolation, InvalidInput, NotFound, TutelageError

EXIT_SERVICE = 1
"""The service could not do what was asked."""
EXIT_INPUT = 2
"""What was asked is wrong."""

app = typer.Typer(
    name="tutelage",
    help="A teacher model learns, by reinforcement, to write what student models should study.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(services.teacher, name="teacher")
app.add_typer(services.student, name="student")
app.add_typer(services.orchestrator, name="orchestrator")
app.add_typer(runs.app, name="run")
app.add_typer(inbox.app, name="inbox")
app.add_typer(adapters.app, name="adapters")
app.add_typer(models.app, name="models")
app.add_typer(policies.app, name="policies")
app.command("adapt")(adapt.adapt)
app.command("quiz")(quiz.quiz)
app.command("ask")(ask.ask)
app.command("demo")(demo.demo)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _violation_line(violation: FieldViolation) -> str:
    value = violation.value if len(violation.value) <= 120 else violation.value[:117] + "..."
    return f"  {violation.field}: {value!r} is not allowed; allowed: {violation.allowed}"


def explain(error: Exception) -> tuple[str, int]:
    """What to print for a fault, and the exit code it ends with."""
    if isinstance(error, InvalidInput):
        return "\n".join(["error: wrong input", *(_violation_line(item) for item in error.violations)]), EXIT_INPUT
    if isinstance(error, NotFound):
        return f"error: {error}", EXIT_INPUT
    if isinstance(error, TutelageError):
        return f"error: {error}", EXIT_SERVICE
    if isinstance(error, OSError) and error.filename is not None:
        return f"error: {error.filename}: {error.strerror}", EXIT_INPUT
    hint = "set TUTELAGE_TRACEBACK=1 to see where"
    return f"error: unexpected {type(error).__name__}: {error} ({hint})", EXIT_SERVICE


def main() -> None:
    """Runs the command line and exits."""
    try:
        app()
    except Exception as error:
        if os.environ.get("TUTELAGE_TRACEBACK"):
            raise
        message, code = explain(error)
        print(message, file=sys.stderr)
        sys.exit(code)


if __name__ == "__main__":
    main()
