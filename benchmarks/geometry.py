"""Models of a known geometry with random weights: enough to time what a student does, without a download."""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, Qwen2Config

from tutelage.models.chat import stop_ids
from tutelage.models.loading import LoadedModel, choose_device, choose_dtype
from tutelage.models.quantised import parameter_count, protect_gradients
from tutelage.models.registry import resolve

GEOMETRIES: dict[str, PretrainedConfig] = {
    "qwen2.5-7b": Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32768, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
    "qwen2.5-tiny": Qwen2Config(
        vocab_size=49152, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=False,
    ),
}  # fmt: skip


def tokenizer_of(model: str) -> Any:
    """The tokenizer alone; the weights need not be there."""
    return AutoTokenizer.from_pretrained(resolve(model).path, local_files_only=True)


def random_model(geometry: str, device: str, seed: int, tokenizer: Any) -> LoadedModel:
    """NF4, with a tokenizer whose ids the geometry has."""
    place = choose_device(device)
    dtype = choose_dtype("auto", place)
    torch.manual_seed(seed)
    with place:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(GEOMETRIES[geometry]), dtype=dtype)
    # All ways of the benchmark stop at the same tokens.
    model.config.eos_token_id = model.generation_config.eos_token_id = sorted(stop_ids(tokenizer, model))
    _quantise(model, dtype, place)
    model.eval().requires_grad_(False)
    protect_gradients(model)
    # By this PEFT knows the layers for what they are.
    model.is_loaded_in_4bit = True
    return LoadedModel(
        model=model, tokenizer=tokenizer, name=geometry, revision=f"random-{seed}", quantisation="nf4",
        device=str(place), compute_dtype=str(dtype).removeprefix("torch."),
        context_length=model.config.max_position_embeddings, parameters=parameter_count(model),
    )  # fmt: skip


def _quantise(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    head = model.get_submodule("lm_head")
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear) or child is head:
                continue
            layer = bnb.nn.Linear4bit(
                child.in_features, child.out_features, bias=child.bias is not None, compute_dtype=dtype,
                compress_statistics=True, quant_type="nf4", device="meta",
            )  # fmt: skip
            layer.weight = bnb.nn.Params4bit(
                child.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4"
            )
            layer.bias = child.bias
            setattr(parent, name, layer.to(device))
