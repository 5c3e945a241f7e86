"""RLOO (arXiv 2402.14740) on candidates sampled and scored elsewhere: each is judged against the mean of the others.

The completion is one action: its ratio is clipped as a whole, and the KL to policy 0 is a part of its reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from teacher.advantages import leave_one_out
from teacher.algorithm import Algorithm, SampleGroup, Training, by_candidate, rewards_of, why_no_spread, with_spread
from teacher.candidate_part import WHY_NONE, PartOptions, lacks_part, learning_part, with_part
from tutelage.domain.policy import UpdateSettings


class RLOOOptions(PartOptions):
    """Settings of RLOO; `epochs` are its iterations over the batch."""

    beta: float = Field(default=0.01, ge=0)
    """Weight of the KL to policy 0 in the reward, in reward a nat; 0 turns it off."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Clip of the ratio below 1."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """Clip of the ratio above 1; nothing means as `epsilon`."""
    normalise_advantages: bool = False
    """Whether advantages are brought to mean 0 and deviation 1 over the batch."""
    max_reward: float | None = Field(default=None, gt=0)
    """Rewards are clipped to plus and minus this before advantages; nothing means no clip."""
    min_spread: float = Field(default=0.0, ge=0)
    """Groups whose best and worst reward differ by no more than this are left out."""
    log_probs: Literal["recorded", "recomputed"] | None = None
    """What ratios are against: log-probabilities `recorded` when sampling, or the parent's own, `recomputed`. Nothing
    means recomputed; with `stale: weight` recorded."""


class RLOO(Algorithm):
    """REINFORCE with a leave-one-out baseline."""

    summary = "policy gradient on whole completions against the mean of the others (REINFORCE leave-one-out)"
    options = RLOOOptions
    learning_rate = 2e-5
    needs_log_probs = True

    def select(
        self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: RLOOOptions
    ) -> tuple[SampleGroup, ...]:
        """Groups whose rewards differ."""
        return with_spread(with_part(groups, options.part), options.min_spread)

    def weights(self, groups: Sequence[SampleGroup], options: RLOOOptions) -> dict[str, float]:
        """Advantages, without the KL that is a part of the reward."""
        rewards = [[_clipped(reward, options) for reward in group] for group in rewards_of(groups)]
        return by_candidate(groups, leave_one_out(rewards, options.normalise_advantages))

    def why_nothing(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: RLOOOptions) -> str:
        """The widest spread."""
        if lacks_part(groups, options.part):
            return WHY_NONE
        return why_no_spread(with_part(groups, options.part), options.min_spread)

    def train(self, training: Training) -> None:
        """Policy gradient by TRL's RLOOTrainer."""
        from trl import RLOOConfig

        from teacher.anchor import held
        from teacher.scored_trainer import (
            ScoredRLOOTrainer,
            ScoredRow,
            build_trainer,
            free_tokens,
            log_probs_of,
            old_log_probs,
            ratios_against,
            shape_arguments,
        )
        from teacher.trl_training import common_arguments, train_in_float32

        options: Any = training.options
        whole, training = training, learning_part(training, options.part, whole=options.anchor > 0)
        arguments = RLOOConfig(
            **common_arguments(training, len(training.samples)),
            **shape_arguments(training),
            # The KL is counted into the rewards below, against policy 0.
            beta=0.0,
            epsilon=options.epsilon,
            epsilon_high=options.epsilon_high,
        )
        trainer = build_trainer(ScoredRLOOTrainer, arguments, training)
        samples = training.samples
        olds = old_log_probs(trainer, samples, ratios_against(options.log_probs, training.settings, whole=True))
        rewards = [_clipped(sample.reward, options) for sample in samples]
        if options.beta > 0:
            references = log_probs_of(trainer, samples, reference=True)
            kls = [
                float(((old - reference) * free_tokens(sample)).sum())
                for old, reference, sample in zip(olds, references, samples, strict=True)
            ]
            rewards = [reward - options.beta * kl for reward, kl in zip(rewards, kls, strict=True)]
            # By a token, as TRL logs it where it generates; with the first step, for the samples stay the same.
            tokens = sum(int(free_tokens(sample).sum()) for sample in samples)
            trainer._metrics["train"]["kl"].append(sum(kls) / max(1, tokens))
        left = iter(rewards)
        grouped = [[next(left) for _ in group.samples] for group in training.groups]
        advantages = [value for group in leave_one_out(grouped, options.normalise_advantages) for value in group]
        trainer.rows = [ScoredRow(*row) for row in zip(samples, advantages, olds, strict=True)]
        with held(trainer, whole.samples, samples, options.anchor):
            train_in_float32(trainer)


def _clipped(reward: float, options: RLOOOptions) -> float:
    most = options.max_reward
    return reward if most is None else min(max(reward, -most), most)
