"""DPO (arXiv 2305.18290) on the best against the worst of each group.

The reference is the parent, the policy that the update starts from, or policy 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from teacher.algorithm import Algorithm, SampleGroup, Training, by_candidate, in_order, why_no_spread, with_spread
from tutelage.domain.policy import UpdateSettings, told_apart
from tutelage.settings import Settings


class DPOOptions(Settings):
    """Settings of DPO; a batch is of pairs."""

    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference; for `ipo` its tau."""
    loss_type: Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero", "sigmoid_norm"] = "sigmoid"
    """TRL's name of the loss on a pair."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a pair is the wrong way round, for `robust`."""
    reference: Literal["parent", "initial"] = "parent"
    """What the policy is held to: its parent, or policy 0."""
    min_gap: float = Field(default=0.0, ge=0)
    """A group makes a pair when best and worst reward differ by more than this; ties make none."""


class DPO(Algorithm):
    """Direct preference optimisation."""

    summary = "the best of each group against its worst (direct preference optimisation)"
    options = DPOOptions
    learning_rate = 5e-5

    def select(
        self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: DPOOptions
    ) -> tuple[SampleGroup, ...]:
        """Of each group its best and its worst, in this order; among equals the shorter, then the lower id."""
        pairs = []
        for group in with_spread(groups, options.min_gap):
            best = min(group.samples, key=lambda s: (-told_apart(s.reward), len(s.completion_ids), s.candidate_id))
            worst = min(group.samples, key=lambda s: (told_apart(s.reward), len(s.completion_ids), s.candidate_id))
            pairs.append(SampleGroup(group.group_id, (best, worst)))
        return tuple(pairs)

    def weights(self, groups: Sequence[SampleGroup], options: DPOOptions) -> dict[str, float]:
        """1 for the best, -1 for the worst."""
        return by_candidate(groups, [[1.0, -1.0] for _ in groups])

    def why_nothing(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: DPOOptions) -> str:
        """The widest gap."""
        return why_no_spread(in_order(groups), options.min_gap)

    def train(self, training: Training) -> None:
        """Preference optimisation by TRL's DPOTrainer."""
        import torch
        from datasets import Dataset
        from trl import DPOConfig, DPOTrainer

        from teacher.trl_training import Progress, RowsAlike, common_arguments, lora_unrounded, train_in_float32

        class Tokenised(RowsAlike, DPOTrainer):
            """Takes ids as they are; TRL would tokenise texts again."""

            def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
                return dataset

        options: Any = training.options
        pairs = [
            {"prompt_ids": best.prompt_ids, "chosen_ids": best.completion_ids, "rejected_ids": worst.completion_ids}
            for best, worst in (group.samples for group in training.groups)
        ]
        with lora_unrounded(training.model):
            trainer = Tokenised(
                model=training.model,
                args=DPOConfig(
                    **common_arguments(training, len(pairs)),
                    beta=options.beta,
                    loss_type=[options.loss_type],
                    label_smoothing=options.label_smoothing,
                    max_length=None,
                ),
                train_dataset=Dataset.from_list(pairs),
                processing_class=training.tokenizer,
                callbacks=[Progress(training.report)],
            )
        if options.reference == "initial":
            # TRL's reference is the adapter `ref`, a copy of the parent; with its B at zero it is the untouched model.
            for name, parameter in trainer.model.named_parameters():
                if ".lora_B.ref." in name:
                    torch.nn.init.zeros_(parameter)
        train_in_float32(trainer)
