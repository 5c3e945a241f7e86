"""The LoRA of a policy, as an update's process carries it: attached to the base, and saved in PEFT's own format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, get_peft_model

from tutelage.domain.policy import UpdateSettings


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


def save_lora(model: Any, output: Path, base_model: str) -> None:
    """Write the LoRA to `output`, as one of `base_model`: PEFT would name the folder that the base lies in here.

    FloatingPointError when the update diverged.
    """
    broken = [name for name, value in model.named_parameters() if value.requires_grad and not value.isfinite().all()]
    if broken:
        raise FloatingPointError(f"the update diverged: {len(broken)} of its tensors are not finite")
    model.peft_config["default"].base_model_name_or_path = base_model
    # A trainer may have left an adapter `ref` behind, its reference.
    model.save_pretrained(
        str(output), safe_serialization=True, save_embedding_layers=False, selected_adapters=["default"]
    )
