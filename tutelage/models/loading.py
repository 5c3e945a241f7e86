"""Load a causal language model by name, frozen and quantised, ready to carry LoRA adapters."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tutelage.domain.errors import DataLoss, Exhausted, InvalidInput
from tutelage.models.memory import total_bytes
from tutelage.models.noise import without_progress_bars
from tutelage.models.quantised import keep_dequantised, parameter_count, protect_gradients, round_weights_only
from tutelage.models.registry import resolve

Quantisation = Literal["nf4", "int8", "none"]
Dequantise = Literal["auto", "each-pass", "once"]
DEQUANTISED_SHARE = 0.1
"""Of a machine's memory that dequantised weights may take without being asked for: all of it, not what is free now, so
that every start decides alike."""
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    model: Any
    tokenizer: Any
    name: str
    revision: str
    quantisation: str
    device: str
    compute_dtype: str
    """`bfloat16`, `float32` or `float16`."""
    context_length: int
    """Tokens."""
    parameters: int

    @functools.cached_property
    def longest_token(self) -> int:
        """Characters that one token can stand for: text of more than so many a token is too long, unread."""
        return max(map(len, self.tokenizer.get_vocab()))


def load_model(
    name: str,
    *,
    quantisation: Quantisation = "nf4",
    device: str = "auto",
    compute_dtype: str = "auto",
    threads: int | None = None,
    cache_dir: Path | str | None = None,
    dequantise: Dequantise = "each-pass",
) -> LoadedModel:
    """Find (and fetch, where needed) the model `name` and load it in eval mode with no parameter that trains.

    `device`: auto, cpu, cuda or cuda:N. `dequantise` is of NF4 only: `each-pass` keeps half a byte a weight; `once`
    keeps the NF4 values in the compute dtype, two or four bytes a weight, and trains and writes 1.1 to 1.4 times as
    fast on a CPU; `auto` is `once` on a CPU where that takes at most `DEQUANTISED_SHARE` of its memory.
    `threads` sets this process's torch threads. InvalidInput for a setting that cannot be, NotFound for an unknown
    model, DataLoss for damaged weights, Exhausted without memory.
    """
    _check(quantisation, dequantise, threads)
    place = choose_device(device)
    dtype = choose_dtype(compute_dtype, place)
    if threads is not None:
        torch.set_num_threads(threads)
    found = resolve(name, cache_dir)
    model, tokenizer = _read(found.path, quantisation, place, dtype)
    protect_gradients(model)
    round_weights_only(model)
    parameters = parameter_count(model)
    model.eval()
    model.requires_grad_(False)
    loaded = LoadedModel(
        model=model,
        tokenizer=tokenizer,
        name=name,
        revision=found.revision,
        quantisation=quantisation,
        device=str(place),
        compute_dtype=str(dtype).removeprefix("torch."),
        context_length=_context_length(model.config, tokenizer),
        parameters=parameters,
    )
    spare = dequantise == "auto" and _to_spare(parameters, place, dtype)
    if quantisation == "nf4" and (dequantise == "once" or spare):
        keep_dequantised(model, dtype)
        model.eval()
    return loaded


def _to_spare(parameters: int, device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and parameters * dtype.itemsize <= DEQUANTISED_SHARE * total_bytes(device)


def choose_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one; InvalidInput for a device that is not here."""
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput.of("device", device, "auto, cpu, cuda or cuda:N") from error
    if place.type not in ("cpu", "cuda"):
        raise InvalidInput.of("device", device, "auto, cpu, cuda or cuda:N")
    if place.type == "cuda":
        if (place.index or 0) >= torch.cuda.device_count():
            raise InvalidInput.of("device", device, f"cpu, or one of {torch.cuda.device_count()} CUDA devices")
        return torch.device("cuda", place.index or 0)
    return torch.device("cpu")


def choose_dtype(compute_dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it natively, else float32."""
    if compute_dtype == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            # Without these instructions bfloat16 is emulated, and slower than float32.
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    if compute_dtype not in _DTYPES:
        raise InvalidInput.of("compute_dtype", compute_dtype, "auto, " + ", ".join(_DTYPES))
    return _DTYPES[compute_dtype]


def _check(quantisation: str, dequantise: str, threads: int | None) -> None:
    if quantisation not in get_args(Quantisation):
        raise InvalidInput.of("quantisation", quantisation, ", ".join(get_args(Quantisation)))
    if dequantise not in get_args(Dequantise):
        raise InvalidInput.of("dequantise", dequantise, ", ".join(get_args(Dequantise)))
    if threads is not None and threads < 1:
        raise InvalidInput.of("threads", threads, "1 or more")


def _read(path: Path, quantisation: Quantisation, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    settings: dict[str, Any] = {"dtype": dtype, "device_map": {"": str(device)}, "use_safetensors": True}
    settings["output_loading_info"] = True
    if quantisation == "nf4":
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    elif quantisation == "int8":
        settings["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        with without_progress_bars():
            model, info = AutoModelForCausalLM.from_pretrained(path, config=config, local_files_only=True, **settings)
    except torch.cuda.OutOfMemoryError as error:
        raise Exhausted(f"the model does not fit into the memory of {device}") from error
    except SafetensorError as error:
        raise DataLoss(f"the weights in {path} are damaged: {error}") from error
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput.of("model", path, f"a causal language model that transformers knows ({reason})") from error
    if info["missing_keys"]:
        # transformers would draw them at random, and answer nonsense.
        raise DataLoss(f"the weights in {path} lack {len(info['missing_keys'])} tensors of the model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _context_length(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config()
    length = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    # Tokenizers without a limit say so with a huge number.
    limit = tokenizer.model_max_length
    return min(int(length), limit) if length else int(limit)
