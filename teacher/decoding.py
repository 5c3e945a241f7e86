"""Attention of one new token on a CPU: queries that share a key head are places of one head.

In bfloat16 torch's own grouping of queries takes several times as long there, and most of the time of a token. The
values are the same to the last bit, in float32 to rounding. What is longer than a token, masked or on a GPU attends as
before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "tutelage_decoding"


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """As the attention functions of transformers: query [B, H, T, E], key and value [B, G, S, E] -> [B, T, H, E]."""
    batch, heads, tokens, width = query.shape
    unusual = (each for each in ("softcap", "position_bias", "cache") if kwargs.get(each) is not None)
    if tokens > 1 or attention_mask is not None or query.device.type != "cpu" or any(unusual):
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return found
    grouped = query.reshape(batch, key.shape[1], -1, width)
    seen = scaled_dot_product_attention(grouped, key, value, scale=scaling)
    return seen.reshape(batch, 1, heads, value.shape[-1]), None


def enable_grouped_decoding(model: Any) -> None:
    """Have a model that attends by torch's kernels do so; one that attends otherwise stays as it is."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
