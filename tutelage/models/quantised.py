"""Quantised layers whose gradients stay right, and NF4 values kept dequantised where memory is cheaper than time.

On CPUs with AVX-512-BF16 the first eval-mode forward of bitsandbytes' `Linear4bit` (seen in 0.50.2) repacks the
weight for inference; every backward pass after it is silently wrong. Who alternates quiz and training must forbid it.
Its `Linear8bitLt` quantises what it is given as well, by all rows at once; here eight bits are of the weights alone.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import dequantize_4bit
from torch import nn


class FrozenLinear(nn.Linear):
    """A linear layer that holds the values of an NF4 weight in the compute dtype, and never trains them.

    It computes what `Linear4bit` computes without dequantising in every pass; LoRA wraps it like any `nn.Linear`.
    """

    @classmethod
    def of(cls, quantised: Any, dtype: torch.dtype) -> FrozenLinear:
        """From a `Linear4bit` whose weight is already quantised."""
        weight = dequantize_4bit(quantised.weight.data, quantised.weight.quant_state).to(dtype)
        bias = quantised.bias
        layer = cls(quantised.in_features, quantised.out_features, bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias.data.to(dtype), requires_grad=False)
        return layer


class Int8Linear(bnb.nn.Linear8bitLt):
    """A linear layer that holds its weight in int8 and computes with it dequantised, in each pass.

    bitsandbytes rounds activations too, but for the columns in which any row has a large one: so a row's result
    depends on who is beside it. Without those columns large models lose much (LLM.int8(), 2022, table 1), and
    activations in eight bits were the greater part of the error on both built-in models anyway.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = _Dequantised.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _Dequantised(torch.autograd.Function):
    """x W^T of a layer; for the backward pass the weight is dequantised again, and not kept."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Int8Linear) -> torch.Tensor:
        ctx.layer = layer
        return nn.functional.linear(x, frozen_weight(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] @ frozen_weight(ctx.layer, gradients[0].dtype), None


def is_packed(layer: nn.Module) -> bool:
    """Whether the layer dequantises its weight whenever it computes."""
    return isinstance(layer, bnb.nn.Linear4bit | bnb.nn.Linear8bitLt)


def frozen_weight(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight [out, in] that a linear layer, quantised or not, computes with, in `dtype`."""
    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        return dequantize_4bit(weight.data, weight.quant_state).to(dtype)
    if isinstance(layer, bnb.nn.Linear8bitLt):
        state = layer.state
        values = state.CB if state.CB is not None else weight.data
        scales = state.SCB if state.SCB is not None else weight.SCB
        # Rows are scaled by their greatest absolute value over 127.
        return values.to(dtype).mul_((scales.float() / 127)[:, None])
    return weight.data.to(dtype)


def protect_gradients(model: nn.Module) -> int:
    """Forbid every `Linear4bit` in `model` to repack its weight for CPU inference; returns how many there are."""
    layers = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def round_weights_only(model: nn.Module) -> None:
    """Make every `Linear8bitLt` in `model` an `Int8Linear` of the same weight."""
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear8bitLt):
            module.__class__ = Int8Linear


def keep_dequantised(model: Any, dtype: torch.dtype) -> int:
    """Replace every `Linear4bit` in `model` by a `FrozenLinear` of the same values; returns how many were replaced."""
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, bnb.nn.Linear4bit):
                setattr(parent, name, FrozenLinear.of(child, dtype))
                replaced += 1
    if replaced:
        # The model is plain now; left marked as 4-bit, PEFT and transformers would treat its layers as packed.
        for mark in ("is_loaded_in_4bit", "is_quantized", "quantization_method", "hf_quantizer"):
            model.__dict__.pop(mark, None)
        model.config.__dict__.pop("quantization_config", None)
    return replaced


def parameter_count(model: nn.Module) -> int:
    """Weights of `model`, counting a packed 4-bit weight by the values it stands for."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += state.shape.numel() if state is not None else parameter.numel()
    return total
