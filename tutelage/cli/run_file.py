"""A run's YAML file becomes what StartRun takes: settings without files, tasks, and the retention quiz.

The command line reads the files; the orchestrator never opens a path that a client names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.domain.errors import FieldViolation, InvalidInput
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


class WrongRun(InvalidInput):
    """All that is wrong here; `rest` is what an orchestrator may be asked about all the same."""

    def __init__(self, path: Path, wrong: Sequence[FieldViolation], rest: RestOfRun) -> None:
        self.path, self.rest = path, rest
        super().__init__(wrong)

    def and_told(self, told: Sequence[FieldViolation]) -> InvalidInput:
        """With what an orchestrator told of the rest, each field once, and nothing of files it did not get."""
        here = {each.field for each in self.violations}
        new = [each for each in told if f"{self.path}: {each.field.removeprefix('config.')}" not in here]
        if not self.rest.tasks:
            new = [each for each in new if not each.field.startswith("tasks")]
        return InvalidInput([*self.violations, *new])


@dataclass(frozen=True)
class RestOfRun:
    config_yaml: str
    tasks: tuple[TaskWithQuiz, ...]
    retention_quiz: Quiz


def prepare_run(path: Path) -> PreparedRun:
    """Reads and checks a run file and the files it names; InvalidInput lists all that is wrong in any of them."""
    import yaml

    from orchestrator.run_config import RunConfig
    from tutelage.documents import read_quiz, read_tasks
    from tutelage.settings import load_settings
    from tutelage.yaml_mapping import parse_mapping

    wrong: list[FieldViolation] = []
    config: RunConfig | None = None
    try:
        config = load_settings(path, RunConfig)
        keys: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)
    except InvalidInput as error:
        wrong += error.violations
        try:
            keys = parse_mapping(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, InvalidInput):
            raise error from None
    documents, quiz, limit = (keys.pop(name, None) for name in _CLIENT_KEYS)
    tasks: Sequence[TaskWithQuiz] = ()
    retention = Quiz()
    if documents is None:
        allowed = "the path of a file with documents and questions"
        wrong.append(FieldViolation(f"{path}: documents", "nothing", allowed))
    elif isinstance(documents, str):
        try:
            tasks = read_tasks(_beside(path, Path(documents)), limit if isinstance(limit, int) and limit > 0 else None)
        except InvalidInput as error:
            wrong += error.violations
    if quiz and isinstance(quiz, str):
        try:
            retention = read_quiz(_beside(path, Path(quiz)))
        except InvalidInput as error:
            wrong += error.violations
    config_yaml = yaml.safe_dump(keys, sort_keys=False)
    if wrong or config is None:
        raise WrongRun(path, wrong, RestOfRun(config_yaml, tuple(tasks), retention))
    return PreparedRun(config, config_yaml, tuple(tasks), retention)


def resolved_yaml(config: RunConfig) -> str:
    """Every setting of the run with its default filled in, as YAML."""
    import yaml

    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
