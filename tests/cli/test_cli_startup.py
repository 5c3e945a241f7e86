"""The command line answers at once: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

_HEAVY = ("torch", "transformers", "trl", "grpc", "sqlalchemy", "numpy")
_PROBE = f"""
import sys
from tutelage.cli.main import app
try:
    app(sys.argv[1:])
except SystemExit:
    pass
print(" ".join(name for name in {_HEAVY!r} if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["run", "start", "--help"], ["student", "serve", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""
    assert done.stdout


def seconds(*command: str) -> float:
    """Of a processor: on a machine with other work the clock says how busy that is."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["run", "start", "--help"], ["ask", "--help"], ["student", "serve", "--help"]],
)
def test_help_answers_in_half_a_second(arguments: list[str]) -> None:
    # Other work on the machine slows a processor too: the best of five counts, and where even the two libraries that
    # the command line is made of take long, three times their time is allowed. torch alone would take ten times that.
    libraries, own = [], []
    for _ in range(5):
        libraries.append(seconds("-c", "import pydantic, typer.rich_utils"))
        own.append(seconds("-m", "tutelage.cli.main", *arguments))
        if min(own) < max(0.5, 3 * min(libraries)):
            return
    pytest.fail(f"took {own}, its libraries {libraries}")


def test_the_orchestrator_starts_without_torch_and_in_about_a_second() -> None:
    probe = (
        "import resource, sys\nimport orchestrator.main\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\nprint(used.ru_utime + used.ru_stime)\n"
        "print(' '.join(name for name in ('torch', 'transformers', 'peft', 'safetensors') if name in sys.modules))"
    )

    def cpu_seconds() -> float:
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        seconds, heavy = done.stdout.split("\n")[:2]
        assert heavy == ""
        return float(seconds)

    # A busy neighbour on the same core doubles even processor time; torch alone would take more than the rest.
    assert min(cpu_seconds() for _ in range(3)) < 2.0


def without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as it is in an install without extras."""
    program = (
        "import sys\nfor name in ('torch', 'transformers', 'peft', 'huggingface_hub'): sys.modules[name] = None\n"
        "from tutelage.cli.main import main\nmain()"
    )
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_an_install_without_extras_lists_models_and_says_what_it_lacks(tmp_path: Path) -> None:
    listed = without_torch("models", "list", "--cache-dir", str(tmp_path), "--json")
    assert listed.returncode == 0, listed.stderr
    assert [entry["name"] for entry in json.loads(listed.stdout)] == ["smollm2-135m-instruct", "gemma3-270m"]
    config = tmp_path / "student.yaml"
    config.write_text(f"model: smollm2-135m-instruct\ndata_dir: {tmp_path}\n")
    for arguments, install in (
        (("models", "pull", "smollm2-135m-instruct", "--cache-dir", str(tmp_path)), "'tutelage[models]'"),
        (("models", "pull", "nobody/nothing", "--cache-dir", str(tmp_path)), "'tutelage[models]'"),
        (("student", "serve", "--config", str(config)), "'tutelage[student]'"),
    ):
        lacking = without_torch(*arguments)
        assert lacking.returncode == 1
        assert f"which is not installed: pip install {install}" in lacking.stderr
        assert "Traceback" not in lacking.stderr
