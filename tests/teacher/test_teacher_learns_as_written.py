"""A model learns as it wrote: what its parent has just written has a ratio of 1, and none of it is clipped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, GPT2Config, OPTConfig, PhiConfig

from teacher.update_child import learn
from teacher.update_request import lessons_of
from tests.teacher.scored_groups import HASH, request
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import tiny_tokenizer

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "phi": (PhiConfig, {**SMALL, "intermediate_size": 64, "resid_pdrop": 0.1}),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "bos_token_id": None}),
    "opt": (OPTConfig, {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "falcon": (FalconConfig, {**SMALL, "hidden_dropout": 0.1, "attention_dropout": 0.1}),
}


@pytest.mark.parametrize("rows_a_pass", [1, 8])
@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_parent_wrote_is_as_probable_in_training(
    family: str, algorithm: str, rows_a_pass: int, tmp_path: Path
) -> None:
    """In passes of several rows the prompts are padded on the left, which is no part of them."""
    tokenizer = tiny_tokenizer()
    kind, arguments = FAMILIES[family]
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(kind(vocab_size=len(tokenizer), **arguments, **ends), dtype=torch.float32)
    # Near to uniform, as random models are, no dropout would tell.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")

    def loaded() -> LoadedModel:
        return load_model(str(tmp_path / "model"), quantisation="none", threads=1, compute_dtype="float32")

    options = {"beta": 0, "epsilon": 1e-3, "log_probs": "recorded"}
    asked = request(loaded().model, "p", algorithm, options)
    still = dataclasses.replace(asked.settings, learning_rate=1e-12, epochs=1, batch_size=8)
    logged: list[Any] = []
    learn(
        loaded(),
        algorithm,
        still,
        lessons_of(asked, HASH, {"p": 0}).groups,
        1,
        tmp_path,
        lambda *step: logged.append(step[3]),
        rows_a_pass=rows_a_pass,
    )
    assert logged
    assert {step["clip_ratio/region_mean"] for step in logged} == {0.0}
