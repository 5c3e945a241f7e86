"""A kept candidate pulls on the policy by its weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from teacher.weighted_sft import WEIGHT, WeightedSFTTrainer
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model

ROWS = (([5, 6, 7], [20, 21, 22, 2]), ([9, 10], [30, 31, 2]))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("weights") / "model"))


def trained(folder: str, weights: tuple[float, ...] | None, scratch: Path, rows: Any = ROWS) -> dict[str, torch.Tensor]:
    """The LoRA after one step of plain gradient descent over all rows; without weights by TRL's own trainer."""
    torch.manual_seed(0)
    loaded = load_model(folder, quantisation="none", threads=1)
    model = get_peft_model(loaded.model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    data = [
        {"input_ids": [*prompt, *answer], "completion_mask": [0] * len(prompt) + [1] * len(answer)}
        | ({} if weights is None else {WEIGHT: weights[place]})
        for place, (prompt, answer) in enumerate(rows)
    ]
    arguments = SFTConfig(
        output_dir=str(scratch), per_device_train_batch_size=1, gradient_accumulation_steps=len(rows), max_steps=1,
        learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, completion_only_loss=True,
        packing=False, max_length=None, report_to="none", save_strategy="no", use_cpu=True, bf16=False, seed=1,
        gradient_checkpointing=False, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    kind = SFTTrainer if weights is None else WeightedSFTTrainer
    start = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    trainer = kind(
        model=model, args=arguments, train_dataset=Dataset.from_list(data), processing_class=loaded.tokenizer
    )
    trainer.train()
    return {name: value.detach() - start[name] for name, value in model.named_parameters() if value.requires_grad}


def test_equal_weights_are_plain_fine_tuning(model_folder: str, tmp_path: Path) -> None:
    plain, weighted = trained(model_folder, None, tmp_path / "a"), trained(model_folder, (1.0, 1.0), tmp_path / "b")
    assert max(float(step.abs().max()) for step in plain.values()) > 0
    for name, step in plain.items():
        torch.testing.assert_close(weighted[name], step)


def test_a_weight_scales_its_rows_pull(model_folder: str, tmp_path: Path) -> None:
    first = trained(model_folder, (1.0, 0.0), tmp_path / "a")
    second = trained(model_folder, (0.0, 1.0), tmp_path / "b")
    both = trained(model_folder, (1.5, 0.5), tmp_path / "c")
    # The base computes in bfloat16, which knows two to three digits.
    for name, step in both.items():
        expected = 1.5 * first[name] + 0.5 * second[name]
        assert float((step - expected).norm()) <= 0.02 * float(expected.norm())
    assert float(sum(step.norm() for step in both.values())) > 0
