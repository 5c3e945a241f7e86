"""Models of a known geometry with random weights: enough to time what a student does, without a download."""

from __future__ import annotations

import copy
import functools
from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, Qwen2Config

from tutelage.models.builtin import BUILTIN_MODELS
from tutelage.models.chat import stop_ids
from tutelage.models.loading import LoadedModel, choose_device, choose_dtype
from tutelage.models.quantised import parameter_count, protect_gradients
from tutelage.models.registry import list_models
from tutelage.models.tiny import tiny_tokenizer

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


@functools.cache
def tokenizer_of(model: str) -> Any:
    """The tokenizer alone, of a folder, a hub id, or a built-in model in the cache; the weights need not be there.

    For a built-in model that is not there one of bytes stands in, which is printed, for its rows are longer.
    """
    cached = {entry.name: entry.path for entry in list_models() if entry.cached}
    if model in BUILTIN_MODELS and model not in cached:
        print(f"{model} is not in the cache: text is in bytes, so that rows are some four times as long\n")
        return tiny_tokenizer(context=32768)
    tokenizer = AutoTokenizer.from_pretrained(cached.get(model, model))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def random_model(geometry: str, device: str, seed: int, tokenizer: Any) -> LoadedModel:
    """NF4, with a tokenizer whose ids the geometry has."""
    place = choose_device(device)
    dtype = choose_dtype("auto", place)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(GEOMETRIES[geometry]), dtype=dtype)
    torch.manual_seed(seed)
    _draw(model, dtype, place)
    # All ways of the benchmark stop at the same tokens.
    model.config.eos_token_id = model.generation_config.eos_token_id = sorted(stop_ids(tokenizer, model))
    model.eval().requires_grad_(False)
    protect_gradients(model)
    # By this PEFT knows the layers for what they are.
    model.is_loaded_in_4bit = True
    return LoadedModel(
        model=model, tokenizer=tokenizer, name=geometry, revision=f"random-{seed}", quantisation="nf4",
        device=str(place), compute_dtype=str(dtype).removeprefix("torch."),
        context_length=model.config.max_position_embeddings, parameters=parameter_count(model),
    )  # fmt: skip


@torch.no_grad()
def _draw(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Random weights on the device, each layer quantised before the next is drawn: none of it is ever there whole."""
    for name in [name for name, module in model.named_modules() if not list(module.children())]:
        module = model.get_submodule(name).to_empty(device=device)
        model._init_weights(module)
        if isinstance(module, nn.Linear) and name != "lm_head":
            model.set_submodule(name, _quantised(module, dtype, device))


def _quantised(plain: nn.Linear, dtype: torch.dtype, device: torch.device) -> nn.Module:
    layer = bnb.nn.Linear4bit(
        plain.in_features, plain.out_features, bias=plain.bias is not None, compute_dtype=dtype,
        compress_statistics=True, quant_type="nf4", device="meta",
    )  # fmt: skip
    layer.weight = bnb.nn.Params4bit(plain.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4")
    layer.bias = plain.bias
    quantised: nn.Module = layer.to(device)
    return quantised
