"""A model of a known geometry needs no download, no weights beside its tokenizer, and no room for all of it at once."""

from __future__ import annotations

import copy
from pathlib import Path

import bitsandbytes as bnb
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from benchmarks.geometry import GEOMETRIES, random_model, tokenizer_of
from tutelage.models.quantised import frozen_weight
from tutelage.models.tiny import tiny_tokenizer


def test_a_folder_with_a_tokenizer_alone_will_do(tmp_path: Path) -> None:
    tiny_tokenizer(context=4096).save_pretrained(tmp_path)
    assert tokenizer_of(str(tmp_path))("heron")["input_ids"] == tiny_tokenizer()("heron")["input_ids"]


def test_bytes_stand_in_for_a_model_that_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "empty"))
    tokenizer_of.cache_clear()
    assert len(tokenizer_of("smollm2-135m-instruct")) == 260
    tokenizer_of.cache_clear()
    assert "smollm2-135m-instruct is not in the cache: text is in bytes" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


class Drawn(TorchDispatchMode):
    """What was drawn at random and what was quantised, in the order of both."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        for name, work in (("normal_", "draw"), ("quantize_4bit", "quantise")):
            if name in str(func) and not args[0].is_meta:
                self.order.append(work)
        return func(*args, **(kwargs or {}))


def test_random_weights_are_quantised_layer_by_layer_and_are_those_of_the_geometry() -> None:
    with Drawn() as drawn:
        loaded = random_model("qwen2.5-tiny", "cpu", 1, tiny_tokenizer())
    # The embedding, then seven projections in each of two layers, then the head.
    assert drawn.order == ["draw", *["draw", "quantise"] * 14, "draw"]
    plain = AutoModelForCausalLM.from_config(copy.deepcopy(GEOMETRIES["qwen2.5-tiny"]))
    assert loaded.parameters == plain.num_parameters()
    modules = dict(loaded.model.named_modules())
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert isinstance(modules[name], bnb.nn.Linear4bit) == (name != "lm_head")
            assert frozen_weight(modules[name], torch.float32).std() == pytest.approx(
                float(module.weight.detach().std()), rel=0.1
            )
    assert torch.equal(modules["model.rotary_emb"].inv_freq, plain.model.rotary_emb.inv_freq)
    assert loaded.model(torch.arange(30)[None]).logits.isfinite().all()
