"""The LoRA of a policy, as an update's process carries it: attached to the base, and saved in PEFT's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import UpdateSettings


def without_dropout(base: Any) -> None:
    """Have the base compute in training what it computes in writing.

    With dropout the ratio of a token to what was recorded of it would be chance, and a clip would let through whom it
    likes. Some models keep their rates in such layers, others as numbers, of their own or of their configuration.
    """
    holders: list[Any] = []
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        holders += [module, getattr(module, "config", None)]
    for holder in holders:
        for name, value in list(vars(holder).items()) if holder is not None else []:
            if any(rate in name for rate in ("dropout", "pdrop", "layerdrop")) and isinstance(value, float):
                setattr(holder, name, 0.0)


def attach_lora(base: Any, settings: UpdateSettings, parent: Path | None) -> Any:
    """The base with a LoRA named `default` that trains: the parent's, or a fresh one, which changes nothing yet."""
    if parent is not None:
        return PeftModel.from_pretrained(base, str(parent), is_trainable=True)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(base, config)


def diverged(learning_rate: float | None, how: str) -> InvalidInput:
    """The same settings and candidates would diverge again, so that nobody is to ask for the update once more."""
    return InvalidInput.of("settings.learning_rate", learning_rate, f"a lower one: the update diverged, {how}")


def save_lora(model: Any, output: Path, base_model: str, learning_rate: float | None) -> None:
    """Write the LoRA to `output`, as one of `base_model`: PEFT would name the folder that the base lies in here.

    InvalidInput when the update diverged.
    """
    broken = [name for name, value in model.named_parameters() if value.requires_grad and not value.isfinite().all()]
    if broken:
        raise diverged(learning_rate, f"{len(broken)} tensors of its LoRA hold values that are no numbers")
    model.peft_config["default"].base_model_name_or_path = base_model
    # A trainer may have left an adapter `ref` behind, its reference.
    model.save_pretrained(
        str(output), safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"]
    )
