"""A GGUF file becomes a plain folder of safetensors and tokenizer, so that every later load takes a second."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tutelage.models.noise import without_progress_bars


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model in `gguf` to `folder` in bfloat16, with its tokenizer and chat template.

    Four-bit values times a shared scale lose nothing that matters in bfloat16, and the folder is half as large.
    """
    source = str(gguf.parent)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf.name)
    with without_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            device_map="cpu",
        )
    # What was read is plain weights now: the folder must not claim another quantisation.
    for holder in (model, model.config):
        if hasattr(holder, "quantization_config"):
            del holder.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.generation_config.do_sample = False
    for setting in ("temperature", "top_p", "top_k"):
        setattr(model.generation_config, setting, None)
    with without_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
