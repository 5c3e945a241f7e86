"""How documents are turned into knowledge of students without teaching the teacher: the recipe of an adaptation.

An adaptation is a run of one round whose teacher stays as it is: n candidates for each document, each tried on every
student, the best by its quiz offered to the gates, committed or not. A recipe becomes that run's settings.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from orchestrator.commit_gate import TRIES
from orchestrator.prompt_places import place_violations
from orchestrator.run_config import DeadlineConfig, InlineFormat, InnerLoopConfig, RunConfig, SamplingConfig
from tutelage.domain.errors import FieldViolation
from tutelage.domain.made_quiz import DEFAULT_CHECK, QuizCheck
from tutelage.settings import Inconsistent, Settings, violations_of


class GateConfig(Settings):
    """What the best candidate of a document has to show before a student keeps it."""

    grader: str = "contains"
    """Grader of the document's quiz by which candidates are ranked and gains measured."""
    min_gain: float = 0.0
    """The gain on the quiz must be above this: once as evaluated, and once more as the version is stored."""
    retention_grader: str = "loglik"
    """Grader of the retention quiz."""
    max_retention_loss: float | None = Field(default=0.5, ge=0)
    """Most that one document may cost on the retention quiz; nothing means no limit."""
    min_retention: float | None = None
    """Least that the version kept may score on the retention quiz: what bounds the loss of many documents."""


_OWN_NAMES = {"commit.grader": "gate.grader", "reward.retention_grader": "gate.retention_grader"}
"""What a recipe calls settings of its run."""


class Recipe(Settings):
    """How a document is learned."""

    students: tuple[str, ...] = Field(min_length=1)
    """Logical students that learn."""
    policy: str = Field(default="latest", min_length=1)
    """Who writes: `latest` (the teacher's newest policy), `promoted`, `initial` (the untouched model), or a version."""
    format: str | InlineFormat = "implications"
    """Name of one of the teacher's formats (`+directives` behind it: with directives), or a format written here."""
    candidates: int = Field(default=4, ge=1, le=1024)
    """Self-edits a document, of which the best is offered to the gates."""
    evaluation_seeds: int = Field(default=1, ge=1, le=64)
    """Evaluations of a candidate on each student, with different seeds."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of everything random in it."""
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """How the teacher samples."""
    inner_loop: InnerLoopConfig = Field(default_factory=InnerLoopConfig)
    """How students train."""
    graders: tuple[str, ...] = Field(default=("contains", "loglik"), min_length=1)
    """Graders of the quizzes."""
    judges: tuple[str, ...] = ()
    """The orchestrator's judges that grade the stored answers, too; `gate.grader` may name one."""
    gate: GateConfig = Field(default_factory=GateConfig)
    """What the best candidate has to show."""
    retention_quiz: Path | None = None
    """File with questions about other things; without it forgetting is not measured."""
    made_questions: int = Field(default=0, ge=0, le=24)
    """Questions that are made for a document that has none, by the teacher's first policy; 0 refuses such documents."""
    least_questions: int = Field(default=3, ge=1)
    """With fewer that can be made, a document is left out and reported."""
    made_check: QuizCheck = DEFAULT_CHECK
    """What the teacher's first policy has to answer before a made question is kept: `both` (it finds the answer with
    the text, and does not know it without), `unknown` (it does not know it without), or `none`."""
    deadlines: DeadlineConfig = Field(default_factory=DeadlineConfig)
    """How long and how often an evaluation is tried."""

    @model_validator(mode="after")
    def _is_a_run(self) -> Recipe:
        # The run's own checks (graders that are missing, students named twice) hold for the recipe, too.
        try:
            RunConfig.model_validate(self._run_values("adapt"))
        except ValidationError as error:
            wrong = violations_of(error, RunConfig)
            # The weights of its reward are the gate's grader once more.
            named = [each for each in wrong if not each.field.startswith("reward.grader_weights.")]
            raise Inconsistent(
                [replace(each, field=_OWN_NAMES.get(each.field, each.field)) for each in named]
            ) from None
        if isinstance(self.format, InlineFormat) and (strange := place_violations(self.format.prompt, "format.prompt")):
            raise Inconsistent(strange)
        if 0 < self.made_questions < self.least_questions:
            raise Inconsistent.of(
                "made_questions", self.made_questions, f"0, or least_questions ({self.least_questions}) and more"
            )
        return self

    def unmeasured(self) -> list[FieldViolation]:
        """What the gate asks for and no retention quiz measures; the quiz may still come from the command line."""
        if self.gate.min_retention is None or self.retention_quiz is not None:
            return []
        allowed = "nothing without a retention_quiz: nothing measures what was forgotten"
        return [FieldViolation("gate.min_retention", str(self.gate.min_retention), allowed)]

    def _run_values(self, name: str) -> dict[str, Any]:
        values = self.model_dump(mode="json", exclude={"gate", "name", "documents", "retention_quiz", "limit"})
        gate = self.gate
        return {
            "name": name,
            **{key: value for key, value in values.items() if key in RunConfig.model_fields},
            "rounds": 1,
            "reward": {"grader_weights": {gate.grader: 1.0}, "retention_grader": gate.retention_grader},
            "update": {"when": "never"},
            "commit": {
                "when": "end",
                "grader": gate.grader,
                "min_gain": gate.min_gain,
                "max_retention_loss": gate.max_retention_loss,
                "min_retention": gate.min_retention,
            },
        }

    def run_yaml(self, name: str) -> str:
        """The settings of the run that does it, as YAML."""
        return yaml.safe_dump(self._run_values(name), sort_keys=False)

    @property
    def evaluations_per_document(self) -> int:
        """The most evaluations that one document can take.

        Every candidate on every student, and what a commit may train again: a student that moved on since, or no
        longer holds the weights.
        """
        return len(self.students) * (self.candidates * self.evaluation_seeds + TRIES)


class AdaptConfig(Recipe):
    """The file that `tutelage adapt` takes. `documents`, `retention_quiz` and `limit` are read by the command line."""

    name: str = Field(default="adapt", max_length=200)
    """A title for people."""
    documents: Path | None = None
    """File with the documents and their questions."""
    limit: int | None = Field(default=None, ge=1)
    """First documents of the file to use."""
