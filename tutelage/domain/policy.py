"""What a teacher writes with (format, sampling, policy) and learns from (candidates in groups, with rewards)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from tutelage.domain.canonical import as_floats
from tutelage.domain.self_edit import Rejection, SelfEdit


class Parser(StrEnum):
    LINES = "lines"
    WHOLE = "whole"
    QUESTION_ANSWER = "question_answer"
    PARAGRAPHS = "paragraphs"
    THOUGHT_LINES = "thought_lines"
    """Lines, behind a train of thought that is no note."""
    MIXED = "mixed"
    """The completion's first line names the format that the writer chose; its parser reads the rest."""


@dataclass(frozen=True)
class Format:
    """A format of self-edits as data. `{title}` and `{text}` in the prompt are replaced."""

    name: str
    prompt: str
    parser: Parser
    directives: bool = False
    max_documents: int = 0


WITH_DIRECTIVES = "+directives"
"""Behind a format's name: the same format, whose candidates begin with directives."""


def with_directives(format: Format) -> Format:
    """The format that the name with `WITH_DIRECTIVES` behind it means."""
    return replace(format, name=format.name + WITH_DIRECTIVES, directives=True)


def format_by_name(name: str, formats: Iterable[Format]) -> Format | None:
    """One of the formats, or one of them with directives (`self-qa+directives`); None where there is none."""
    known = {each.name: each for each in formats}
    if name in known:
        return known[name]
    plain = known.get(name.removesuffix(WITH_DIRECTIVES))
    return with_directives(plain) if plain else None


@dataclass(frozen=True)
class Sampling:
    """SEAL samples self-edits at temperature 1.0, top_p 0.95; policy gradients want top_p 1, at any temperature."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256

    def __post_init__(self) -> None:
        as_floats(self, "temperature", "top_p")


@dataclass(frozen=True)
class Candidate:
    index: int
    policy_version: str
    format: str
    text: str
    result: SelfEdit | Rejection
    rollout: bytes
    """Serialised `tutelage.v1.Rollout`; only a teacher reads it."""
    completion_tokens: int
    seed: int
    duplicates_removed: int = 0


def told_apart(reward: float) -> float:
    """A reward, or a difference of two, to compare by: sums of the same numbers in another order are equal."""
    return round(reward, 9)


@dataclass(frozen=True)
class ScoredCandidate:
    candidate_id: str
    rollout: bytes
    reward: float | None
    """Gain over the untouched student; None means unscored."""


@dataclass(frozen=True)
class CandidateGroup:
    group_id: str
    candidates: tuple[ScoredCandidate, ...]


class StaleCandidates(StrEnum):
    """What happens to a candidate whose policy is further behind the parent than allowed."""

    DROP = "drop"
    WEIGHT = "weight"
    """Kept, weighted by its probability now over that at which it was sampled."""


@dataclass(frozen=True)
class UpdateSettings:
    """SEAL, appendix B: teacher LoRA r 64, alpha 128, all linear layers, lr 3e-4, 2 epochs, batch 10."""

    rank: int = 64
    alpha: float = 128.0
    learning_rate: float | None = None
    """Nothing means the algorithm's own: 3e-4 for `rest_em`."""
    epochs: int = 2
    batch_size: int = 10
    min_reward: float = 0.0
    """A group's best is kept only if its reward is above this."""
    max_staleness: int = 1
    """Most updates between the policy that wrote a candidate and the parent."""
    stale: StaleCandidates = StaleCandidates.DROP
    options: dict[str, Any] = field(default_factory=dict)
    """The algorithm's own settings: JSON values by name; numbers are floats, as JSON has one kind."""

    def __post_init__(self) -> None:
        as_floats(self, "alpha", "learning_rate", "min_reward")
        object.__setattr__(self, "options", _one_kind_of_number(self.options))


@dataclass(frozen=True)
class UpdateRequest:
    parent_version: str
    algorithm: str
    settings: UpdateSettings
    groups: tuple[CandidateGroup, ...]
    seed: int
    run_id: str
    round: int


@dataclass(frozen=True)
class Policy:
    version: str
    parent_version: str
    """Empty for policy 0, the untouched model."""
    run_id: str
    round: int
    algorithm: str
    data_hash: str
    update_id: str
    created_at: datetime


@dataclass(frozen=True)
class PolicyDetails:
    policy: Policy
    rank: int
    """Of the LoRA; 0 for policy 0, which has none."""
    alpha: float
    target_modules: tuple[str, ...]
    bytes: int
    ancestors: tuple[str, ...]
    """Parent first, policy 0 last."""
    promoted: bool


@dataclass(frozen=True)
class Promotion:
    """The version that is recommended, and those that were."""

    version: str
    previous_versions: tuple[str, ...]
    """Newest first."""
    changed_at: datetime


class PolicyForm(StrEnum):
    PEFT = "peft"
    """A LoRA in PEFT's own format."""
    MERGED = "merged"
    """The whole model with the LoRA merged in."""


@dataclass(frozen=True)
class ExportedFile:
    """Of an export: what follows are this file's bytes."""

    name: str
    bytes: int


MOST_METRICS = 128
"""Of an update: a result travels and is stored, whatever a trainer logs."""
LONGEST_METRIC = 100
"""Characters of a metric's name."""


@dataclass(frozen=True)
class UpdateResult:
    policy: Policy
    update_id: str
    updated: bool
    kept_candidates: int
    train_seconds: float
    message: str = ""
    unscored_candidates: int = 0
    stale_candidates: int = 0
    """Dropped because their policy was too far behind."""
    peak_memory_bytes: int = 0
    """Most that the update's process held; 0 where it is not known."""
    peak_gpu_memory_bytes: int = 0
    learnt: dict[str, float] = field(default_factory=dict)
    """What was learnt from, by candidate id: above 0 made more probable, below 0 less."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the trainer logged, by its own names: means over the steps, all finite."""
    first_loss: float | None = None
    """Of the first step; None where nothing was trained, or where it was no finite number."""
    last_loss: float | None = None


def _one_kind_of_number(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _one_kind_of_number(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_one_kind_of_number(item) for item in value]
    # One that no double holds stays what it is, to be refused where it is sent.
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if whole else value
