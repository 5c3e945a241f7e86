"""What a teacher writes with (format, sampling, policy) and learns from (candidates in groups, with rewards)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tutelage.domain.canonical import as_floats
from tutelage.domain.self_edit import Rejection, SelfEdit


class Parser(StrEnum):
    LINES = "lines"
    WHOLE = "whole"
    QUESTION_ANSWER = "question_answer"
    PARAGRAPHS = "paragraphs"


@dataclass(frozen=True)
class Format:
    """A format of self-edits as data. `{title}` and `{text}` in the prompt are replaced."""

    name: str
    prompt: str
    parser: Parser
    directives: bool = False
    max_documents: int = 0


@dataclass(frozen=True)
class Sampling:
    """SEAL samples self-edits at temperature 1.0, top_p 0.95; TRL's log-probabilities want 1.0 and 1.0."""

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


@dataclass(frozen=True)
class UpdateSettings:
    """SEAL, appendix B: teacher LoRA r 64, alpha 128, all linear layers, lr 3e-4, 2 epochs, batch 10."""

    rank: int = 64
    alpha: float = 128.0
    learning_rate: float = 3e-4
    epochs: int = 2
    batch_size: int = 10
    min_reward: float = 0.0
    """A group's best is kept only if its reward is above this."""

    def __post_init__(self) -> None:
        as_floats(self, "alpha", "learning_rate", "min_reward")


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
class UpdateResult:
    policy: Policy
    update_id: str
    updated: bool
    kept_candidates: int
    train_seconds: float
    message: str = ""
