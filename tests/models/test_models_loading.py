"""Loading: NF4 values and gradients are right, also after a quiz; settings that cannot be are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tutelage.domain.errors import DataLoss, InvalidInput, NotFound
from tutelage.models.chat import prompt_ids, stop_ids
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.quantised import FrozenLinear, protect_gradients
from tutelage.models.tiny import TINY_FAMILIES, write_tiny_model

needs_repacking_cpu = pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="only CPUs with AVX-512-BF16 repack NF4 weights"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    # Wide enough for bitsandbytes' blocks of 64 and for the kernels that repack.
    return {family: write_tiny_model(root / family, family=family, hidden=64) for family in TINY_FAMILIES}


def load(folder: Path, **settings: Any) -> LoadedModel:
    return load_model(str(folder), device="cpu", **{"compute_dtype": "float32", **settings})


def quiz(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([prompt_ids(tokenizer, "Where is the tower?")])
    model.eval()
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            do_sample=False,
            eos_token_id=sorted(stop_ids(tokenizer, model)),
        )


def lora_gradients(loaded: LoadedModel, *, protect: bool = True) -> dict[str, torch.Tensor]:
    """Gradients of a LoRA with a B that is not zero, after a quiz."""
    torch.manual_seed(0)
    model = get_peft_model(loaded.model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    for module in model.modules():
        if not protect and isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = True
    quiz(model, loaded.tokenizer)
    model.train()
    ids = torch.arange(4, 40).reshape(2, 18)
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_error(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / right[name].norm().clamp_min(1e-12)) for name in right)


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("dequantise", ["each-pass", "once"])
def test_nf4_gradients_after_a_quiz_equal_those_of_the_dequantised_reference(
    folders: dict[str, Path], family: str, dequantise: Any
) -> None:
    reference = load(folders[family], quantisation="none")
    packed = load(folders[family], dequantise="each-pass")
    # The reference is a plain model that holds the NF4 values: what bitsandbytes dequantises, before any forward pass.
    plain = dict(reference.model.named_modules())
    for name, module in packed.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain[name].weight.data.copy_(weight)
    tested = load(folders[family], dequantise=dequantise)
    assert largest_error(lora_gradients(tested), lora_gradients(reference)) < 1e-5


@needs_repacking_cpu
def test_without_protection_the_gradients_are_wrong(folders: dict[str, Path]) -> None:
    right = lora_gradients(load(folders["llama"], dequantise="once"))
    try:
        wrong = lora_gradients(load(folders["llama"], dequantise="each-pass"), protect=False)
    except RuntimeError:
        return  # Refusing loudly is fine; silence is what the protection is for.
    assert largest_error(wrong, right) > 1e-2


def test_protection_reaches_every_layer(folders: dict[str, Path]) -> None:
    model = load(folders["llama"], dequantise="each-pass").model
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert protect_gradients(model) == len(layers)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_once_and_each_pass_compute_the_same(folders: dict[str, Path], family: str) -> None:
    ids = torch.arange(4, 30)[None]
    once, each = (load(folders[family], dequantise=way) for way in ("once", "each-pass"))
    assert isinstance(once.model.model.layers[0].mlp.up_proj, FrozenLinear)
    assert once.quantisation == each.quantisation == "nf4"
    assert once.parameters == each.parameters == load(folders[family], quantisation="none").parameters
    with torch.inference_mode():
        torch.testing.assert_close(once.model(ids).logits, each.model(ids).logits, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("quantisation", ["nf4", "int8", "none"])
def test_a_loaded_model_is_frozen_and_described(folders: dict[str, Path], quantisation: Any) -> None:
    loaded = load(folders["llama"], quantisation=quantisation)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert (loaded.quantisation, loaded.device, loaded.compute_dtype) == (quantisation, "cpu", "float32")
    assert loaded.context_length == 512
    assert len(loaded.revision) == 64
    assert loaded.revision == load(folders["llama"]).revision


def test_none_computes_what_transformers_computes(folders: dict[str, Path]) -> None:
    ids = torch.arange(4, 40)[None]
    plain = AutoModelForCausalLM.from_pretrained(folders["qwen2"], dtype=torch.float32).eval()
    with torch.inference_mode():
        assert torch.equal(load(folders["qwen2"], quantisation="none").model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_int8_computes_and_learns_nearly_what_the_plain_model_does(folders: dict[str, Path], family: str) -> None:
    ids = torch.arange(4, 40)[None]
    packed, plain = load(folders[family], quantisation="int8"), load(folders[family], quantisation="none")
    layers = [module for module in packed.model.modules() if isinstance(module, bnb.nn.Linear8bitLt)]
    assert len(layers) == 14
    assert all(layer.weight.dtype == torch.int8 for layer in layers)
    with torch.inference_mode():
        near, exact = packed.model(ids).logits, plain.model(ids).logits
    # Eight bits keep about two digits; four would not pass here.
    assert float((near - exact).norm() / exact.norm()) < 0.02
    assert largest_error(lora_gradients(packed), lora_gradients(plain)) < 0.1


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"quantisation": "nf3"}, "quantisation"),
        ({"dequantise": "twice"}, "dequantise"),
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:99"}, "device"),
        ({"compute_dtype": "int4"}, "compute_dtype"),
        ({"threads": 0}, "threads"),
    ],
)
def test_settings_that_cannot_be_are_named(folders: dict[str, Path], settings: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_model(str(folders["llama"]), **settings)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataLoss, match="damaged"):
        load(folder)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataLoss, match="lack 1 tensor"):
        load(folder)


def test_an_unknown_architecture_or_name_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "nothing-known"}))
    with pytest.raises(InvalidInput, match="model"):
        load(folder)
    with pytest.raises(NotFound, match="smollm2-135m-instruct"):
        load_model("no-such-model", device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quantisation", ["nf4", "int8", "none"])
def test_models_load_on_a_gpu(folders: dict[str, Path], quantisation: Any) -> None:
    loaded = load_model(str(folders["llama"]), quantisation=quantisation, device="auto")
    assert loaded.device == "cuda:0"
    logits = loaded.model(torch.arange(4, 30, device=loaded.device)[None]).logits
    assert torch.isfinite(logits).all()
