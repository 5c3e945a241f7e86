"""What an algorithm is: it selects what is worth learning from, and trains the policy's LoRA on it.

`select` is pure and runs in the teacher; `train` runs in the update's own process, on a model that already carries the
LoRA. Everything around them is the same for all: reading rollouts, leaving out unscored and stale candidates, ids,
processes, storing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from tutelage.domain.policy import UpdateSettings, told_apart
from tutelage.settings import Settings

NOTHING_LOGGED: Mapping[str, float] = MappingProxyType({})


class Report(Protocol):
    """What a training calls after each step."""

    def __call__(
        self, steps_done: int, steps_total: int, loss: float, logged: Mapping[str, float] = NOTHING_LOGGED
    ) -> None:
        """`logged` is what else the trainer tells of the step; means of it are in the update's result."""


@dataclass(frozen=True)
class Sample:
    """A scored completion; only the completion's tokens carry loss."""

    candidate_id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    reward: float
    log_probs: tuple[float, ...] = ()
    """Natural, one a completion token, under `temperature` and top_p 1, as recorded when it was sampled."""
    ended: bool = True
    """Whether its last token is an end token that was sampled, not a length limit."""
    forced: tuple[bool, ...] = ()
    """One a completion token: whether a form left the policy no choice; empty where it always had one."""
    weight: float = 1.0
    """How much of the loss it has where the algorithm weighs."""
    temperature: float = 1.0
    """That its log-probabilities are of; one for all samples of an algorithm that needs them."""


@dataclass(frozen=True)
class SampleGroup:
    """Scored completions of one prompt."""

    group_id: str
    samples: tuple[Sample, ...]

    @property
    def spread(self) -> float:
        """Best reward less worst."""
        rewards = [sample.reward for sample in self.samples]
        return told_apart(max(rewards) - min(rewards)) if rewards else 0.0


class NoOptions(Settings):
    """For an algorithm without settings of its own."""


@dataclass(frozen=True)
class Training:
    """What `train` is given."""

    model: Any
    """A PeftModel whose adapter `default` is the policy's LoRA; without adapter it is policy 0."""
    tokenizer: Any
    device: str
    groups: tuple[SampleGroup, ...]
    """What `select` chose."""
    settings: UpdateSettings
    options: Settings
    """An instance of the algorithm's `options`."""
    seed: int
    scratch: Path
    """An empty place for files; removed afterwards."""
    report: Report
    rows_a_pass: int = 1
    gradient_checkpointing: bool = False

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples, group by group."""
        return tuple(sample for group in self.groups for sample in group.samples)


class Algorithm(ABC):
    """One way to learn from scored groups."""

    summary: ClassVar[str]
    """One line for people."""
    options: ClassVar[type[Settings]] = NoOptions
    """Its own settings, `update.options` in a run's YAML."""
    learning_rate: ClassVar[float] = 3e-4
    """That of an update which names none: where to begin with it."""
    needs_log_probs: ClassVar[bool] = False
    """Whether it weighs by recorded log-probabilities, so that stale candidates can be weighted, not only dropped."""

    @abstractmethod
    def select(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: Any) -> tuple[SampleGroup, ...]:
        """The part of `groups` that is worth learning from; nothing means that the policy stays as it is.

        The result must not depend on the order of groups or of their samples.
        """

    @abstractmethod
    def train(self, training: Training) -> None:
        """Train the LoRA of `training.model` in place."""

    def weights(self, groups: Sequence[SampleGroup], options: Any) -> dict[str, float]:
        """By candidate id how what `select` chose is learnt from: above 0 made more probable, below 0 less.

        For reports; empty where an algorithm does not tell.
        """
        return {}

    def why_nothing(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: Any) -> str:
        """For people: why `select` chose nothing of groups that hold scored samples."""
        return "no group is worth learning from"


def in_order(groups: Sequence[SampleGroup]) -> tuple[SampleGroup, ...]:
    """Groups by id, and their samples by id: what arrived first must not matter."""
    return tuple(
        SampleGroup(group.group_id, tuple(sorted(group.samples, key=lambda sample: sample.candidate_id)))
        for group in sorted(groups, key=lambda group: group.group_id)
    )


def by_candidate(groups: Sequence[SampleGroup], values: Sequence[Sequence[float]]) -> dict[str, float]:
    """Values of the groups' samples by candidate id."""
    return {
        sample.candidate_id: value
        for group, each in zip(groups, values, strict=True)
        for sample, value in zip(group.samples, each, strict=True)
    }


def free_flags(sample: Sample) -> list[int]:
    """One a completion token: 1 where the policy chose it, 0 where a form left no choice."""
    return [0 if flag else 1 for flag in sample.forced] or [1] * len(sample.completion_ids)


def rewards_of(groups: Sequence[SampleGroup]) -> list[list[float]]:
    """Of each group's samples."""
    return [[sample.reward for sample in group.samples] for group in groups]


def with_spread(groups: Sequence[SampleGroup], least: float) -> tuple[SampleGroup, ...]:
    """Groups of two or more whose rewards differ by more than `least`: equal ones have no better and no worse."""
    return tuple(group for group in in_order(groups) if len(group.samples) > 1 and group.spread > least)


def why_no_spread(groups: Sequence[SampleGroup], least: float) -> str:
    """For people: why `with_spread` left nothing."""
    widest = max((group.spread for group in groups if len(group.samples) > 1), default=0.0)
    return f"in none of {len(groups)} groups do rewards differ by more than {least:g}; the most is {widest:.4g}"
