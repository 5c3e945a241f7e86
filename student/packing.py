"""Rows of any lengths as one flat sequence: no token of it is padding.

The base's projections see [1, N] tokens; positions start anew with each row, and attention runs row by row. The
attention function is registered with transformers, so that every family that goes through its attention interface is
served; a model that is not told `packed_lengths` attends as before.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from student.padded import Padded, length_class
from student.row_attention import RowAttention

NAME = "tutelage_packed"
WHOLE = 512
"""Tokens up to which a row's attention is formed whole on a CPU: torch's flash kernel gets near with longer ones, and
the scratch is two numbers for each pair of them."""


def packed_inputs(ids_N: torch.Tensor, lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What a model is called with for rows of these lengths, one after the other as one sequence."""
    positions_N = torch.cat([torch.arange(length) for length in lengths])
    return {
        "input_ids": ids_N.unsqueeze(0).to(device),
        "position_ids": positions_N.unsqueeze(0).to(device),
        # With all four dimensions it is passed on as it is, and nothing reads it.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "use_cache": False,
        # transformers hands what it does not know to the attention function.
        "packed_lengths": tuple(lengths),
    }


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    lengths = packed_lengths
    if lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    sliding = sliding_window if sliding_window is not None else max(lengths)
    if query.device.type != "cpu" and max(lengths) <= sliding:
        return padded_attention(query, key, value, tuple(lengths), scale), None
    alike = key.shape[-1] == value.shape[-1] and key.dtype == value.dtype == query.dtype
    short = min(WHOLE, sliding) if query.device.type == "cpu" and alike else 0
    runs = _runs(lengths, short)
    parts = []
    # Split, not sliced: its backward is one concatenation, where each slice's would be a tensor of all tokens.
    sizes = [sum(run) for run in runs]
    for run, q, k, v in zip(
        runs, query.split(sizes, dim=2), key.split(sizes, dim=2), value.split(sizes, dim=2), strict=True
    ):
        if run[0] <= short:
            parts.append(RowAttention.apply(q, k, v, run, scale))
        else:
            parts.append(_one_row(q, k, v, scale, sliding))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def padded_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...], scale: float
) -> torch.Tensor:
    """Causal attention of rows as batches of about one length, for GPUs; as the attention functions of transformers.

    query [1, H, N, E], key and value [1, G, N, E] -> [1, N, H, E]. What pads a row stands behind its tokens, which
    never look there, so that no mask is needed.
    """
    groups = query.shape[1] // key.shape[1]
    flat = [each[0].transpose(0, 1) for each in (query, key, value)]
    outputs = []
    for places in _row_places(lengths, query.device):
        q, k, v = (places.spread(each).transpose(1, 2) for each in flat)
        k, v = repeat_kv(k, groups), repeat_kv(v, groups)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        outputs.append(places.gathered(seen.transpose(1, 2)))
    total = outputs[0]
    for output in outputs[1:]:
        total = total + output
    return total.unsqueeze(0)


@functools.lru_cache(maxsize=8)
def _row_places(lengths: tuple[int, ...], device: torch.device) -> list[Padded]:
    """Rows of one class of length together; each layer of a pass asks for the same."""
    stops = list(itertools.accumulate(lengths))
    classes: dict[int, list[tuple[int, int]]] = {}
    for length, stop in zip(lengths, stops, strict=True):
        classes.setdefault(length_class(length), []).append((stop - length, stop))
    return [Padded.of(spans, stops[-1], device) for spans in classes.values()]


def _runs(lengths: Sequence[int], short: int) -> list[list[int]]:
    """Consecutive rows of at most `short` tokens together, every other row alone."""
    runs: list[list[int]] = []
    for length in lengths:
        if runs and length <= short and runs[-1][-1] <= short:
            runs[-1].append(length)
        else:
            runs.append([length])
    return runs


def _one_row(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, sliding: int) -> torch.Tensor:
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    k, v = repeat_kv(k, groups), repeat_kv(v, groups)
    if length > sliding:
        seen = scaled_dot_product_attention(q, k, v, attn_mask=_banded(length, sliding, q.device), scale=scale)
    else:
        seen = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return seen.transpose(1, 2).contiguous()


def _banded(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[length, length]: each token sees itself and the `window - 1` before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def window_of(model: Any) -> int | None:
    """Tokens that the layers with a sliding window see; None where all see everything."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    slides = kinds is None or "sliding_attention" in kinds
    return getattr(config, "sliding_window", None) if slides else None


def enable_packing(model: Any) -> None:
    """Puts the packed attention in force on the model; it answers padded batches as before."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
