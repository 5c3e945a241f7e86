"""What the demo runs with: settings of four services, and the quickstart of the examples as its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.domain.errors import NotFound

DEFAULT_MODEL = "smollm2-135m-instruct"
THREADS = 1
RUN_ID = "demo"
_RUN = Path("examples") / "runs" / "quickstart.yaml"


@dataclass(frozen=True)
class ServiceFiles:
    """Where one service of the demo finds and leaves its things."""

    name: str
    room: str
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / f"{self.name}.yaml"

    @property
    def ready_file(self) -> Path:
        return self.folder / f"{self.name}.ready.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def data_dir(self) -> Path:
        return self.folder / self.name

    def server(self) -> dict[str, Any]:
        """Free loopback ports; whoever wants the address reads the ready file."""
        return {"port": 0, "metrics_port": 0, "ready_file": str(self.ready_file), "grace_s": 5}


def run_file() -> Path:
    """The quickstart of the examples: beside the packages in a checkout, or under the current folder."""
    import tutelage

    roots = [Path(tutelage.__file__).resolve().parents[1], Path.cwd()]
    for root in roots:
        if (root / _RUN).is_file():
            return root / _RUN
    tried = ", ".join(str(root) for root in roots)
    raise NotFound("file", str(_RUN), f"the demo needs examples/ of the source tree (looked in {tried})")


def _write(path: Path, content: dict[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def write_model_services(
    folder: Path, model: str, names: Sequence[str]
) -> tuple[ServiceFiles, tuple[ServiceFiles, ...]]:
    """Writes the settings of the teacher and of the students that have these names."""
    teacher = ServiceFiles("teacher", "teacher", folder)
    students = tuple(ServiceFiles(f"student-{name}", "student", folder) for name in names)
    for service in (teacher, *students):
        content: dict[str, Any] = {
            "model": model,
            "quantisation": "nf4",
            "threads": THREADS,
            "data_dir": str(service.data_dir),
            "server": service.server(),
        }
        if service.room == "student":
            content["slots"] = 4
        _write(service.config, content)
    return teacher, students


def write_orchestrator(folder: Path, teacher: str, students: dict[str, str]) -> ServiceFiles:
    """Writes the orchestrator's settings, once the addresses of the others are known."""
    service = ServiceFiles("orchestrator", "orchestrator", folder)
    content = {
        "data_dir": str(service.data_dir),
        "teacher": {"address": teacher},
        "students": {name: {"address": address} for name, address in students.items()},
        "server": service.server(),
    }
    _write(service.config, content)
    return service
