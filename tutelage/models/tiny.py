"""Tiny random causal language models, written in under a second without a network, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tutelage.domain.errors import InvalidInput

TINY_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")

_FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "gemma3": Gemma3TextConfig,
    "mistral": MistralConfig,
    "phi": PhiConfig,
    "phi3": Phi3Config,
}
TINY_FAMILIES = tuple(_FAMILIES)
"""The architectures that `write_tiny_model` can write."""
TINY_WINDOW = 16
"""Tokens that every other layer of a tiny gemma3 sees."""


def tiny_tokenizer(*, chat_template: bool = True, context: int = 512) -> PreTrainedTokenizerFast:
    """Of bytes, with 260 ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*_SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(_SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>" if chat_template else "<|endoftext|>",
        pad_token="<|pad|>",  # noqa: S106
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=context,
    )
    if chat_template:
        tokenizer.chat_template = TINY_CHAT_TEMPLATE
    return tokenizer


def write_tiny_model(
    path: Path | str,
    *,
    family: str = "llama",
    chat_template: bool = True,
    seed: int = 0,
    hidden: int = 32,
    layers: int = 2,
    context: int = 512,
) -> Path:
    """Write a random model of `family` with a byte-level tokenizer (260 tokens) to the folder `path`.

    `hidden` is the width, a multiple of 32; `context` the most tokens. The same arguments write the same weights.
    InvalidInput for an unknown family.
    """
    config_class = _FAMILIES.get(family)
    if config_class is None:
        raise InvalidInput.of("family", family, "one of " + ", ".join(TINY_FAMILIES))
    if hidden < 32 or hidden % 32:
        raise InvalidInput.of("hidden", hidden, "a multiple of 32")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(chat_template=chat_template, context=context)
    heads = hidden // 16
    arguments: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": hidden * 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads if family == "phi" else heads // 2,
        "max_position_embeddings": context,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family in ("qwen3", "gemma3"):
        arguments["head_dim"] = 16
    if family == "gemma3":
        # As in the large ones some layers see a window only; it is shorter than most rows.
        kinds = ["sliding_attention" if layer % 2 else "full_attention" for layer in range(layers)]
        arguments |= {"sliding_window": TINY_WINDOW, "layer_types": kinds}
    if family in ("llama", "qwen2"):
        arguments["tie_word_embeddings"] = family == "qwen2"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config_class(**arguments), dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
