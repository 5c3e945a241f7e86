"""GRPO (arXiv 2402.03300) on candidates sampled and scored elsewhere: better than its group, more probable.

Each token's ratio to its recorded log-probability is clipped, so candidates of an older policy are importance-weighted.
KL, where it is asked for, is to policy 0. Options cover Dr. GRPO (arXiv 2503.20783: `loss_type: dr_grpo`,
`scale_rewards: none`), DAPO (arXiv 2503.14476: `loss_type: dapo`, `epsilon_high: 0.28`, groups without spread left out)
and GSPO (arXiv 2507.18071: `importance_sampling_level: sequence`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from teacher.advantages import Scale, group_relative
from teacher.algorithm import Algorithm, SampleGroup, Training, by_candidate, rewards_of, why_no_spread, with_spread
from teacher.candidate_part import WHY_NONE, PartOptions, lacks_part, learning_part, with_part
from tutelage.domain.policy import UpdateSettings
from tutelage.settings import Inconsistent


class GRPOOptions(PartOptions):
    """Settings of GRPO; `epochs` are its iterations over the batch."""

    loss_type: Literal["grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"] = "dapo"
    """How token losses become one: mean of sequence means (`grpo`), over a constant (`dr_grpo`), over all tokens
    (`dapo`), or one of TRL's other losses."""
    scale_rewards: Scale = "group"
    """What an advantage is divided by: the deviation of its `group`, of the whole `batch`, or nothing (`none`)."""
    beta: float = Field(default=0.001, ge=0)
    """Weight of the KL to policy 0; 0 turns it off and saves a pass over every candidate."""
    epsilon: float = Field(default=0.2, gt=0, lt=1)
    """Clip of the ratio below 1."""
    epsilon_high: float | None = Field(default=None, gt=0)
    """Clip of the ratio above 1; nothing means as `epsilon`. DAPO: 0.28. With `loss_type: cispo` the bound of the
    ratio itself: 1 or more, nothing means 5."""
    delta: float | None = Field(default=None, gt=1)
    """Upper bound of the ratio where the advantage is negative (two-sided clipping); nothing means none."""
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """Whether ratios are of tokens, or of whole completions (GSPO)."""
    length_constant: int = Field(default=256, ge=1)
    """Divisor of `dr_grpo`, in tokens; the longest completion that can be sampled."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of an entropy bonus."""
    top_entropy_quantile: float = Field(default=1.0, gt=0, le=1)
    """Part of the tokens, those of highest entropy, that carry loss."""
    off_policy_mask_threshold: float | None = Field(default=None, gt=0)
    """Bad candidates whose mean log-probability fell by more than this carry no loss; nothing means all do."""
    use_bias_correction_kl: bool = True
    """Whether the KL term is importance-weighted too."""
    min_spread: float = Field(default=0.0, ge=0)
    """Groups whose best and worst reward differ by no more than this are left out."""
    skip_truncated: bool = False
    """Whether completions that were cut off at the length limit are left out (DAPO's overlong filtering)."""
    log_probs: Literal["recorded", "recomputed"] | None = None
    """What ratios are against: log-probabilities `recorded` when sampling, or the parent's own, `recomputed`. Nothing
    means recorded; of whole completions (`sequence`, `vespo`) recomputed, but with `stale: weight`."""

    @property
    def ratio_above(self) -> float | None:
        """TRL's `epsilon_high`; for CISPO what ScaleRL (arXiv 2510.13786) found best."""
        return 5.0 if self.loss_type == "cispo" and self.epsilon_high is None else self.epsilon_high

    @property
    def whole_ratios(self) -> bool:
        """Whether ratios are of whole completions."""
        return self.importance_sampling_level == "sequence" or self.loss_type == "vespo"

    @model_validator(mode="after")
    def _consistent(self) -> GRPOOptions:
        if self.loss_type == "luspo" and self.importance_sampling_level != "sequence":
            allowed = "sequence, as loss_type luspo needs it"
            raise Inconsistent.of("importance_sampling_level", self.importance_sampling_level, allowed)
        if self.loss_type == "cispo" and self.epsilon_high is not None and self.epsilon_high < 1:
            # Every ratio would be cut to the same number: nothing would be weighed by what was recorded.
            allowed = "1 or more, as loss_type cispo bounds the ratio itself by it"
            raise Inconsistent.of("epsilon_high", self.epsilon_high, allowed)
        return self


class GRPO(Algorithm):
    """Group-relative policy optimisation."""

    summary = "clipped policy gradient on rewards relative to their group (GRPO, Dr. GRPO, DAPO, GSPO)"
    options = GRPOOptions
    learning_rate = 2e-5
    needs_log_probs = True

    def select(
        self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: GRPOOptions
    ) -> tuple[SampleGroup, ...]:
        """Groups whose rewards differ; in the others every advantage is 0."""
        return with_spread(_looked_at(groups, options), options.min_spread)

    def weights(self, groups: Sequence[SampleGroup], options: GRPOOptions) -> dict[str, float]:
        """Advantages."""
        return by_candidate(groups, group_relative(rewards_of(groups), options.scale_rewards))

    def why_nothing(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: GRPOOptions) -> str:
        """The widest spread of what is not left out for its length."""
        if lacks_part(groups, options.part):
            return WHY_NONE
        own, looked_at = with_part(groups, options.part), _looked_at(groups, options)
        cut = sum(len(group.samples) for group in own) - sum(len(group.samples) for group in looked_at)
        left_out = f"; {cut} candidates that were cut off are left out (skip_truncated)" if cut else ""
        return why_no_spread(looked_at, options.min_spread) + left_out

    def train(self, training: Training) -> None:
        """Clipped policy gradient by TRL's GRPOTrainer."""
        from trl import GRPOConfig

        from teacher.anchor import held
        from teacher.scored_trainer import (
            ScoredGRPOTrainer,
            ScoredRow,
            build_trainer,
            log_probs_of,
            old_log_probs,
            ratios_against,
            shape_arguments,
        )
        from teacher.trl_training import common_arguments, train_in_float32

        options: Any = training.options
        whole, training = training, learning_part(training, options.part, whole=options.anchor > 0)
        arguments = GRPOConfig(
            **common_arguments(training, len(training.samples)),
            **shape_arguments(training),
            # TRL would copy the parent as the reference; it is turned on below, against policy 0.
            beta=0.0,
            loss_type=options.loss_type,
            epsilon=options.epsilon,
            epsilon_high=options.ratio_above,
            delta=options.delta,
            importance_sampling_level=options.importance_sampling_level,
            max_completion_length=options.length_constant,
            entropy_coef=options.entropy_coef,
            top_entropy_quantile=options.top_entropy_quantile,
            off_policy_mask_threshold=options.off_policy_mask_threshold,
            use_bias_correction_kl=options.use_bias_correction_kl,
        )
        trainer = build_trainer(ScoredGRPOTrainer, arguments, training)
        samples = training.samples
        references: list[Any] = [None] * len(samples)
        if options.beta > 0:
            trainer.beta = options.beta
            references = log_probs_of(trainer, samples, reference=True)
        rewards = rewards_of(training.groups)
        advantages = [value for group in group_relative(rewards, options.scale_rewards) for value in group]
        which = ratios_against(options.log_probs, training.settings, whole=options.whole_ratios)
        olds = old_log_probs(trainer, samples, which)
        trainer.rows = [ScoredRow(*row) for row in zip(samples, advantages, olds, references, strict=True)]
        with held(trainer, whole.samples, samples, options.anchor):
            train_in_float32(trainer)


def _looked_at(groups: Sequence[SampleGroup], options: GRPOOptions) -> Sequence[SampleGroup]:
    groups = with_part(groups, options.part)
    if not options.skip_truncated:
        return groups
    return [SampleGroup(group.group_id, tuple(sample for sample in group.samples if sample.ended)) for group in groups]
