"""ReST^EM (arXiv 2312.06585): keep what was worth it, fine-tune on it, continuing the parent's LoRA (TRL's SFT).

The expectation step is the sampling and scoring that went before; this is the maximisation step, on what a rule of
`teacher.selection` keeps, each with the weight that the rule gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field, field_validator

from teacher.algorithm import Algorithm, SampleGroup, Training, by_candidate, free_flags, in_order
from teacher.candidate_part import WHY_NONE, Part, PartOptions, lacks_part, learning_part, with_part
from teacher.selection import RULES, SelectionSettings, kept_by, why_none_kept, why_nothing_kept
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, UpdateSettings
from tutelage.extensions import why_unusable


class RestEMOptions(PartOptions):
    """What is kept of each round."""

    rule: str = "lead"
    """`best` of each group, all `above` the threshold, the `top` fraction, all `weighted` by reward, or by their `lead`
    over their group's mean (docs/rewards.md); or a rule of an installed package."""
    fraction: float = Field(default=0.2, gt=0, le=1)
    """Of `top`: the share of all scored candidates that is kept at most."""

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        if rule not in RULES:
            raise ValueError("one of " + ", ".join(RULES))
        if reason := why_unusable(RULES, rule):
            raise ValueError(f"a rule that can be used; {reason}")
        return rule


class RestEM(Algorithm):
    """Fine-tune on what a selection rule keeps."""

    summary = "fine-tunes on the candidates that a selection rule keeps (SFT)"
    options = RestEMOptions

    def select(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: Any) -> tuple[SampleGroup, ...]:
        """What the rule keeps of the candidates above `min_reward`, with its weights."""
        groups = with_part(groups, _part(options))
        lengths = {sample.candidate_id: len(sample.completion_ids) for group in groups for sample in group.samples}
        kept = kept_by(_scored(groups), lengths, _selection(settings, options))
        weights = {item.candidate.candidate_id: item.weight for item in kept}
        chosen = (
            SampleGroup(
                group.group_id,
                tuple(
                    replace(sample, weight=weights[sample.candidate_id])
                    for sample in group.samples
                    if sample.candidate_id in weights
                ),
            )
            for group in in_order(groups)
        )
        return tuple(group for group in chosen if group.samples)

    def weights(self, groups: Sequence[SampleGroup], options: RestEMOptions) -> dict[str, float]:
        """Weights in the loss."""
        return by_candidate(groups, [[sample.weight for sample in group.samples] for group in groups])

    def why_nothing(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: Any) -> str:
        """The best reward beside the threshold."""
        if lacks_part(groups, _part(options)):
            return WHY_NONE
        groups = with_part(groups, _part(options))
        if not isinstance(options, RestEMOptions):
            # An algorithm derived from this one chooses by itself.
            return why_nothing_kept(_scored(groups), settings.min_reward)
        return why_none_kept(_scored(groups), _selection(settings, options))

    def train(self, training: Training) -> None:
        """Supervised fine-tuning on prompt and completion, with loss on the completion."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        from teacher.anchor import ROWS, STARTS, held
        from teacher.trl_training import Progress, common_arguments, lora_unrounded, train_in_float32
        from teacher.weighted_sft import WEIGHT, AnchoredSFTTrainer

        options, anchor = training.options, _anchor(training.options)
        learning = learning_part(training, _part(options), whole=anchor > 0)
        # What a form forced is no choice of the policy's to imitate.
        pairs = [pair for pair in zip(training.samples, learning.samples, strict=True) if any(free_flags(pair[1]))]
        if not pairs:
            return
        samples = [learnt for _, learnt in pairs]
        rows = [
            {
                "input_ids": [*sample.prompt_ids, *sample.completion_ids],
                "completion_mask": [0] * len(sample.prompt_ids) + free_flags(sample),
                WEIGHT: sample.weight,
                ROWS: place,
                STARTS: len(sample.prompt_ids),
            }
            for place, sample in enumerate(samples)
        ]
        weighted = anchor > 0 or any(sample.weight != 1 for sample in samples)
        at_once = replace(training, rows_a_pass=1) if weighted else training
        arguments = SFTConfig(
            **common_arguments(at_once, len(rows)), completion_only_loss=True, packing=False, max_length=None
        )
        with lora_unrounded(training.model):
            trainer = (AnchoredSFTTrainer if weighted else SFTTrainer)(
                model=training.model,
                args=arguments,
                train_dataset=Dataset.from_list(rows),
                processing_class=training.tokenizer,
                callbacks=[Progress(training.report)],
            )
        with held(trainer, [whole for whole, _ in pairs], samples, anchor):
            train_in_float32(trainer)


def _scored(groups: Sequence[SampleGroup]) -> tuple[CandidateGroup, ...]:
    return tuple(
        CandidateGroup(
            group.group_id, tuple(ScoredCandidate(sample.candidate_id, b"", sample.reward) for sample in group.samples)
        )
        for group in groups
    )


def _part(options: Any) -> Part:
    # An algorithm derived from this one may have options of its own.
    return options.part if isinstance(options, PartOptions) else "all"


def _anchor(options: Any) -> float:
    return options.anchor if isinstance(options, PartOptions) else 0.0


def _selection(settings: UpdateSettings, options: RestEMOptions) -> SelectionSettings:
    return SelectionSettings(options.rule, settings.min_reward, options.fraction)
