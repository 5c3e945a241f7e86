"""What the demo runs with: four settings files and a run file, small enough for two cores and fifteen minutes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.domain.errors import NotFound

DEFAULT_MODEL = "smollm2-135m-instruct"
STUDENTS = ("ada", "ben")
THREADS = 1
RUN_ID = "demo"


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


def examples_folder() -> Path:
    """The example documents: beside the packages in a checkout, or under the current folder."""
    import tutelage

    places = [Path(tutelage.__file__).resolve().parents[1] / "examples", Path.cwd() / "examples"]
    for place in places:
        if (place / "documents" / "train.jsonl").is_file():
            return place
    tried = ", ".join(str(place) for place in places)
    raise NotFound("folder", "examples", f"the demo needs examples/ of the source tree (looked in {tried})")


def _write(path: Path, content: dict[str, Any]) -> None:
    import yaml

    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def write_model_services(folder: Path, model: str) -> tuple[ServiceFiles, tuple[ServiceFiles, ...]]:
    """Writes the settings of the teacher and of the students."""
    teacher = ServiceFiles("teacher", "teacher", folder)
    students = tuple(ServiceFiles(name, "student", folder) for name in STUDENTS)
    for service in (teacher, *students):
        content: dict[str, Any] = {
            "model": model,
            "quantisation": "nf4",
            "threads": THREADS,
            "data_dir": str(service.data_dir),
            "server": service.server(),
        }
        if service.room == "student":
            content["slots"] = 1
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


def write_run(folder: Path, examples: Path) -> Path:
    """Writes the run: 2 documents x 2 candidates x 2 rounds x 2 students = 16 evaluations, and those of commits."""
    path = folder / "run.yaml"
    content = {
        "name": RUN_ID,
        "documents": str(examples / "documents" / "train.jsonl"),
        "limit": 2,
        "students": list(STUDENTS),
        "format": "self-qa",
        "candidates": 2,
        "evaluation_seeds": 1,
        "rounds": 2,
        "seed": 7,
        "sampling": {"max_new_tokens": 192},
        "inner_loop": {"rank": 16, "alpha": 32, "learning_rate": 1e-3, "epochs": 8, "batch_size": 4},
        "graders": ["contains", "f1", "loglik"],
        "update": {"algorithm": "rest_em", "rank": 16, "alpha": 32},
        # The dense grader: with a dozen questions `contains` alone would often see no difference.
        "commit": {"when": "end", "grader": "loglik", "min_gain": 0.0},
    }
    _write(path, content)
    return path
