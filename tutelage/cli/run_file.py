"""A run's YAML file becomes what StartRun takes: settings without files, tasks, and the retention quiz.

The command line reads the files; the orchestrator never opens a path that a client names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.domain.errors import InvalidInput
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import Quiz

if TYPE_CHECKING:
    from orchestrator.run_config import RunConfig

_CLIENT_KEYS = ("documents", "retention_quiz", "limit")


@dataclass(frozen=True)
class PreparedRun:
    config: RunConfig
    config_yaml: str
    """What is sent: the file's own keys, without those that name files."""
    tasks: tuple[TaskWithQuiz, ...]
    retention_quiz: Quiz

    @property
    def evaluations(self) -> int:
        """Evaluations of the rounds, without those of commits; an upper bound where candidates are rejected."""
        config = self.config
        per_round = len(self.tasks) * config.candidates * config.evaluation_seeds * len(config.students)
        return per_round * config.rounds


def _beside(run_file: Path, named: Path) -> Path:
    """Paths in a run file are relative to the file itself, so that a folder with a run can be moved."""
    return named if named.is_absolute() else run_file.parent / named


def prepare_run(path: Path) -> PreparedRun:
    """Reads and checks a run file and the files it names; InvalidInput lists every wrong field."""
    import yaml

    from orchestrator.run_config import RunConfig
    from tutelage.documents import read_quiz, read_tasks
    from tutelage.settings import load_settings

    config = load_settings(path, RunConfig)
    if config.documents is None:
        raise InvalidInput.of(f"{path}: documents", "nothing", "the path of a file with documents and questions")
    tasks = read_tasks(_beside(path, Path(config.documents)), config.limit)
    retention = read_quiz(_beside(path, Path(config.retention_quiz))) if config.retention_quiz else Quiz()
    sent: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True, exclude=set(_CLIENT_KEYS))
    return PreparedRun(config, yaml.safe_dump(sent, sort_keys=False), tuple(tasks), retention)


def resolved_yaml(config: RunConfig) -> str:
    """Every setting of the run with its default filled in, as YAML."""
    import yaml

    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
