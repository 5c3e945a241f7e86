"""Keys and ids of a run's evaluations, put together from the parts that many of them share.

A key's id is the hash of its canonical JSON. A quiz, an edit and the settings are in thousands of keys of a run, so the
JSON of each part is made once; the id is the same as the key's own.
"""

from __future__ import annotations

import dataclasses
import hashlib
from functools import lru_cache

from orchestrator.records import Run
from orchestrator.run_events import Evaluate
from tutelage.domain.canonical import canonical_json, derived_seed
from tutelage.domain.evaluation import EvaluationKey
from tutelage.domain.self_edit import SelfEdit

_FIELDS = tuple(sorted(field.name for field in dataclasses.fields(EvaluationKey)))
_KEPT = 1024
"""Edits whose JSON is kept."""


def round_seed(run: Run, work: Evaluate) -> int:
    """The same for all candidates of a group, so that they differ by their edits only."""
    return derived_seed(run.config.seed, work.task, work.round, work.repeat)


def evaluation_key(run: Run, work: Evaluate, edit: SelfEdit, adapter_version: str, seed: int) -> EvaluationKey:
    """The key, from the student as it was when the run started."""
    student = run.students[work.student].description
    return EvaluationKey(
        base_model=student.base_model,
        base_revision=student.base_revision,
        quantisation=student.quantisation,
        adapter_version=adapter_version,
        self_edit=edit,
        quiz=run.tasks[work.task].quiz,
        retention_quiz=run.retention_quiz,
        graders=run.config.graders,
        settings=run.config.inner_loop_settings(),
        engine_revision=student.engine_revision,
        seed=seed,
    )


class RoundKeys:
    """Keys of what is evaluated in rounds: over the version that was current when the run started."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._settings = run.config.inner_loop_settings()
        self._shared = {
            "graders": canonical_json(run.config.graders),
            "retention_quiz": canonical_json(run.retention_quiz),
            "settings": canonical_json(self._settings),
        }
        self._seed = lru_cache(_KEPT)(lambda task, round_, repeat: derived_seed(run.config.seed, task, round_, repeat))
        self._quiz = lru_cache(_KEPT)(lambda task: canonical_json(run.tasks[task].quiz))
        self._edits: dict[str, str] = {}

    def of(self, work: Evaluate, edit: SelfEdit) -> tuple[EvaluationKey, str]:
        """The key and its id; `edit` is what `work` names by its hash."""
        run, student = self._run, self._run.students[work.student]
        seed = self._seed(work.task, work.round, work.repeat)
        described = student.description
        key = EvaluationKey(
            base_model=described.base_model,
            base_revision=described.base_revision,
            quantisation=described.quantisation,
            adapter_version=student.adapter_version,
            self_edit=edit,
            quiz=run.tasks[work.task].quiz,
            retention_quiz=run.retention_quiz,
            graders=run.config.graders,
            settings=self._settings,
            engine_revision=described.engine_revision,
            seed=seed,
        )
        parts = {**self._shared, "quiz": self._quiz(work.task), "self_edit": self._edit(work.edit, edit)}
        fields = [f'"{name}":{parts.get(name) or canonical_json(getattr(key, name))}' for name in _FIELDS]
        # The type's name sorts after all fields of a key.
        text = "{" + ",".join([*fields, '"type":"EvaluationKey"']) + "}"
        return key, hashlib.sha256(text.encode()).hexdigest()

    def _edit(self, name: str, edit: SelfEdit) -> str:
        text = self._edits.get(name)
        if text is None:
            if len(self._edits) >= _KEPT:
                self._edits.clear()
            text = self._edits[name] = canonical_json(edit)
        return text
