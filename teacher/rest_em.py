"""ReST^EM's second half: fine-tune on what was kept, continuing the parent's LoRA with a fresh optimiser (TRL's SFT).

Runs in the update's own process: trainers patch the model that they touch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from teacher.update_request import Row
from tutelage.domain.policy import UpdateSettings
from tutelage.models.loading import LoadedModel

Report = Callable[[int, int, float], None]
"""Called with steps done, steps in all, and the last loss in nats a token."""


@dataclass(frozen=True)
class _Loss:
    value: float = 0.0


class _Progress(TrainerCallback):
    def __init__(self, report: Report) -> None:
        self._report = report
        self._loss = _Loss()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._loss = _Loss(float(logs["loss"]))
            self._report(state.global_step, state.max_steps, self._loss.value)


def train_on_kept(
    loaded: LoadedModel,
    rows: tuple[Row, ...],
    settings: UpdateSettings,
    seed: int,
    *,
    parent: Path | None,
    output: Path,
    scratch: Path,
    report: Report,
    gradient_checkpointing: bool = False,
) -> None:
    """Train on `rows` and save the adapter in PEFT's format to `output`."""
    torch.manual_seed(seed)
    if parent is None:
        # A fresh LoRA's B is zero: it starts as the untouched model.
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(loaded.model, config)
    else:
        model = PeftModel.from_pretrained(loaded.model, str(parent), is_trainable=True)
    arguments = SFTConfig(
        output_dir=str(scratch),
        # One row at a time: no pads, and the logits of one row are what fills the memory.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=min(settings.batch_size, len(rows)),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        completion_only_loss=True,
        packing=False,
        max_length=None,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        seed=seed,
        data_seed=seed,
        bf16=False,
        fp16=False,
        use_cpu=loaded.device == "cpu",
        dataloader_pin_memory=False,
        gradient_checkpointing=gradient_checkpointing,
    )
    data = Dataset.from_list(
        [
            {
                "input_ids": [*row.prompt_ids, *row.completion_ids],
                "completion_mask": [0] * len(row.prompt_ids) + [1] * len(row.completion_ids),
            }
            for row in rows
        ]
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        processing_class=loaded.tokenizer,
        callbacks=[_Progress(report)],
    )
    # On a quantised base the trainer casts the LoRA to bf16; steps of 1e-4 need more than eight bits.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    trainer.train()
    broken = [name for name, value in model.named_parameters() if value.requires_grad and not value.isfinite().all()]
    if broken:
        raise FloatingPointError(f"the update diverged: {len(broken)} of its tensors are not finite")
    model.save_pretrained(str(output), safe_serialization=True, save_embedding_layers=False)
