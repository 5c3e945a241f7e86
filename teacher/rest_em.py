"""ReST^EM (arXiv 2312.06585): keep what was worth it, fine-tune on it, continuing the parent's LoRA (TRL's SFT).

The expectation step is the sampling and scoring that went before; this is the maximisation step, on the best candidate
of each group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from teacher.algorithm import Algorithm, SampleGroup, Training, in_order
from teacher.selection import best_of_each_group, why_nothing_kept
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, UpdateSettings


class RestEM(Algorithm):
    """Fine-tune on the best of each group."""

    summary = "fine-tunes on the best candidate of each group (SFT)"

    def select(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: Any) -> tuple[SampleGroup, ...]:
        """The best of each group that is above `min_reward`."""
        samples = {sample.candidate_id: sample for group in groups for sample in group.samples}
        lengths = {name: len(sample.completion_ids) for name, sample in samples.items()}
        kept = {item.candidate_id for item in best_of_each_group(_scored(groups), lengths, settings.min_reward)}
        chosen = (
            SampleGroup(group.group_id, tuple(sample for sample in group.samples if sample.candidate_id in kept))
            for group in in_order(groups)
        )
        return tuple(group for group in chosen if group.samples)

    def why_nothing(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: Any) -> str:
        """The best reward beside the threshold."""
        return why_nothing_kept(_scored(groups), settings.min_reward)

    def train(self, training: Training) -> None:
        """Supervised fine-tuning on prompt and completion, with loss on the completion."""
        from datasets import Dataset
        from trl import SFTConfig, SFTTrainer

        from teacher.trl_training import Progress, common_arguments, train_in_float32

        samples = training.samples
        rows = [
            {
                "input_ids": [*sample.prompt_ids, *sample.completion_ids],
                "completion_mask": [0] * len(sample.prompt_ids) + [1] * len(sample.completion_ids),
            }
            for sample in samples
        ]
        arguments = SFTConfig(
            **common_arguments(training, len(rows)), completion_only_loss=True, packing=False, max_length=None
        )
        trainer = SFTTrainer(
            model=training.model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=training.tokenizer,
            callbacks=[Progress(training.report)],
        )
        train_in_float32(trainer)


def _scored(groups: Sequence[SampleGroup]) -> tuple[CandidateGroup, ...]:
    return tuple(
        CandidateGroup(
            group.group_id, tuple(ScoredCandidate(sample.candidate_id, b"", sample.reward) for sample in group.samples)
        )
        for group in groups
    )
