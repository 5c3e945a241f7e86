"""TRL's GRPO and RLOO trainers, fed with completions that were sampled and scored elsewhere.

Their own trainers generate, score, and repeat prompts; here a row is one candidate whose ids, advantage and recorded
log-probabilities are known. What stays TRL's is the loss, with its clipping, KL and normalisation, and the optimiser.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer
from trl import GRPOTrainer, RLOOTrainer

from teacher.algorithm import Sample, Training, free_flags
from teacher.anchor import ROWS, STARTS, AnchoredLoss
from teacher.trl_training import Progress, RowsAlike, lora_unrounded
from tutelage.domain.policy import StaleCandidates, UpdateSettings


@dataclass(frozen=True)
class ScoredRow:
    """A candidate as a trainer takes it."""

    sample: Sample
    advantage: float
    old_log_probs_T: torch.Tensor
    """What the ratio of the loss is taken against, one a completion token."""
    reference_log_probs_T: torch.Tensor | None = None
    """Under policy 0, where the loss has a KL term."""

    @property
    def free_T(self) -> torch.Tensor:
        """1 where the policy had a choice, 0 where a form had made it: what was forced teaches nothing."""
        return free_tokens(self.sample)


class _Scored(RowsAlike, AnchoredLoss):
    """Mixed into a TRL trainer: rows instead of generations."""

    rows: Sequence[ScoredRow]

    def get_train_dataloader(self) -> Any:
        return Trainer.get_train_dataloader(self)

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return Trainer._get_train_sampler(self, dataset)

    def _prepare_inputs(self, batch: list[dict[str, int]]) -> dict[str, Any]:
        """Prompts padded on the left and completions on the right, as TRL's losses want them."""
        trainer: Any = self
        device = trainer.accelerator.device
        pad = trainer.processing_class.pad_token_id
        rows = [self.rows[item["row"]] for item in batch]
        prompts = [torch.tensor(row.sample.prompt_ids) for row in rows]
        completions = [torch.tensor(row.sample.completion_ids) for row in rows]
        # A mean token count times the rows of a batch: some losses divide by all tokens of the batch.
        tokens = sum(int(row.free_T.sum()) for row in self.rows) / len(self.rows)
        inputs = {
            "prompt_ids": pad_sequence(prompts, True, pad, "left"),
            "prompt_mask": pad_sequence([torch.ones_like(ids) for ids in prompts], True, 0, "left"),
            "completion_ids": pad_sequence(completions, True, pad),
            "completion_mask": pad_sequence([torch.ones_like(ids) for ids in completions], True, 0),
            "advantages": torch.tensor([row.advantage for row in rows]),
            "old_per_token_logps": pad_sequence([row.old_log_probs_T for row in rows], True),
            "old_logps": torch.stack([(row.old_log_probs_T * row.free_T).sum() for row in rows]),
            # TRL's name for what the environment wrote, not the model.
            "tool_mask": pad_sequence([row.free_T for row in rows], True),
            "num_items_in_batch": torch.tensor(tokens * len(rows) * trainer.args.steps_per_generation),
        }
        if self.anchor is not None:
            inputs |= {
                ROWS: torch.tensor([item["row"] for item in batch]),
                STARTS: torch.full((len(rows),), inputs["prompt_ids"].shape[1]),
            }
        references = [row.reference_log_probs_T for row in rows if row.reference_log_probs_T is not None]
        if references:
            inputs["ref_per_token_logps"] = pad_sequence(references, True)
        return {name: value.to(device) for name, value in inputs.items()}


class ScoredGRPOTrainer(_Scored, GRPOTrainer):
    """GRPO's losses on scored rows."""


class ScoredRLOOTrainer(_Scored, RLOOTrainer):
    """RLOO's loss on scored rows; it sums over a completion, so what was forced is made to add nothing."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        self._free_BT = inputs["tool_mask"]
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> Any:
        logps_BT, *rest = super()._get_per_token_logps_and_entropies(*arguments, **named)
        free_BT = getattr(self, "_free_BT", None)
        return (logps_BT if free_BT is None else logps_BT * free_BT, *rest)


def free_tokens(sample: Sample) -> torch.Tensor:
    """(T,) 1 where the policy chose the completion's token, 0 where a form left no choice."""
    return torch.tensor(free_flags(sample))


def count_positions_from_the_first_token(base: Any) -> None:
    """Have pads on the left, with which TRL's trainers read several rows a pass, take no position.

    Models that learn an embedding for each position, such as GPT-2, would read a row otherwise than it was written.
    """

    def counted(_module: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask_BT = named.get("attention_mask")
        if mask_BT is None or named.get("position_ids") is not None or bool(mask_BT[:, 0].all()):
            return arguments, named
        return arguments, named | {"position_ids": (mask_BT.cumsum(-1) - 1).clamp(min=0)}

    if "position_ids" in inspect.signature(base.base_model.forward).parameters:
        base.base_model.register_forward_pre_hook(counted, with_kwargs=True)


def build_trainer(kind: type[Any], arguments: Any, training: Training) -> Any:
    """A trainer for all samples of a training; its `rows` are set before it trains."""

    def scored_elsewhere(prompts: Sequence[object], **_: object) -> list[float]:
        raise RuntimeError("candidates are scored before they come here")

    count_positions_from_the_first_token(training.model.get_base_model())
    with lora_unrounded(training.model):
        return kind(
            model=training.model,
            reward_funcs=scored_elsewhere,
            args=arguments,
            train_dataset=Dataset.from_list([{"prompt": "", "row": row} for row in range(len(training.samples))]),
            processing_class=training.tokenizer,
            callbacks=[Progress(training.report)],
        )


def shape_arguments(training: Training) -> dict[str, Any]:
    """What TRL wants to know of generations that are never made; it refuses groups of fewer than two."""
    return {
        "num_generations": 2,
        "steps_per_generation": 2,
        "remove_unused_columns": False,
        # Log-probabilities are of the distribution that was sampled from, as the recorded ones are.
        "temperature": training.samples[0].temperature,
    }


@torch.no_grad()
def log_probs_of(trainer: Any, samples: Sequence[Sample], *, reference: bool) -> list[torch.Tensor]:
    """Log-probabilities (T,) of each completion under the policy as it stands; `reference`: under policy 0."""
    found = []
    model = trainer.accelerator.unwrap_model(trainer.model)
    device = trainer.accelerator.device
    training = model.training
    model.eval()
    with model.disable_adapter() if reference else contextlib.nullcontext():
        for sample in samples:
            ids = torch.tensor([[*sample.prompt_ids, *sample.completion_ids]], device=device)
            logps, _, _ = trainer._get_per_token_logps_and_entropies(
                model, ids, torch.ones_like(ids), len(sample.completion_ids)
            )
            found.append(logps[0].float().cpu())
    model.train(training)
    return found


def ratios_against(asked: str | None, settings: UpdateSettings, *, whole: bool) -> str:
    """What `old_log_probs` is to give; `asked`: as the options say, `whole`: for ratios of whole completions.

    A pass over a completion rounds otherwise than writing it a token at a time. In bfloat16 that is some hundredths a
    token, and of a hundred tokens more than a clip lets through: what the parent has just written would be clipped by
    chance. Only who weighs by age asks for what was recorded all the same.
    """
    if asked is not None:
        return asked
    return "recomputed" if whole and settings.stale != StaleCandidates.WEIGHT else "recorded"


def old_log_probs(trainer: Any, samples: Sequence[Sample], which: str) -> list[torch.Tensor]:
    """As `recorded` when they were sampled, or `recomputed` under the parent."""
    if which == "recomputed":
        return log_probs_of(trainer, samples, reference=False)
    return [torch.tensor(sample.log_probs) for sample in samples]
