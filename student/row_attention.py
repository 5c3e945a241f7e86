"""Causal attention of many short rows in one call, for CPUs.

torch's flash kernel costs far more than its arithmetic on rows of some dozen tokens, above all backward in bfloat16.
Shape suffixes: H query heads, G key heads, N tokens of all rows, E features of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from student.attention_products import attend, derive_attention, scratch_values
from student.scratch import scratch
from student.shares import shares, side_by_side

Stops = np.ndarray[Any, np.dtype[np.int64]]


class RowAttention(torch.autograd.Function):
    """q [1, H, N, E], k and v [1, G, N, E], row lengths, scale -> [1, N, H, E] in the dtype of q."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], scale: float
    ) -> torch.Tensor:
        # What is compiled would not notice.
        for each in (k, v):
            if each.shape[2:] != q.shape[2:] or each.dtype != q.dtype or sum(lengths) != q.shape[2]:
                told = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in (q, k, v))
                raise ValueError(f"rows of {sum(lengths)} tokens attend with {told}")
        q_HNE, k_GNE, v_GNE = (_readable(each[0]) for each in (q, k, v))
        heads, tokens, features = q_HNE.shape
        out_NHE = q_HNE.new_empty(tokens, heads, features)
        logs_HN = torch.empty(heads, tokens, dtype=torch.float32)
        rows, room = list(_rows(lengths)), scratch_values(max(lengths), features)

        def attend_rows(start: int, stops: Stops) -> None:
            attend(
                *_told(q_HNE), *_told(k_GNE), *_told(v_GNE), _half(q_HNE), heads, len(k_GNE), features, tokens, start,
                stops, scale, out_NHE.data_ptr(), logs_HN.data_ptr(), scratch(room),
            )  # fmt: skip

        side_by_side([partial(attend_rows, *share) for share in rows])
        ctx.save_for_backward(q, k, v, logs_HN)
        ctx.rows, ctx.scale, ctx.room = rows, scale, room
        return out_NHE.unsqueeze(0).to(q.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        q, k, v, logs_HN = ctx.saved_tensors
        q_HNE, k_GNE, v_GNE, g_HNE = (_readable(each) for each in (q[0], k[0], v[0], gradients[0][0].transpose(0, 1)))
        # Contiguous, whatever the strides of what they are derivatives by.
        dq_HNE, dk_GNE, dv_GNE = (each.new_empty(each.shape) for each in (q_HNE, k_GNE, v_GNE))
        heads, tokens, features = q_HNE.shape

        def derive_rows(start: int, stops: Stops) -> None:
            derive_attention(
                *_told(q_HNE), *_told(k_GNE), *_told(v_GNE), _half(q_HNE), heads, len(k_GNE), features, tokens, start,
                stops, ctx.scale, *_told(g_HNE), logs_HN.data_ptr(), dq_HNE.data_ptr(), dk_GNE.data_ptr(),
                dv_GNE.data_ptr(), scratch(ctx.room),
            )  # fmt: skip

        side_by_side([partial(derive_rows, *share) for share in ctx.rows])
        dq, dk, dv = (each.unsqueeze(0).to(q.dtype) for each in (dq_HNE, dk_GNE, dv_GNE))
        return dq, dk, dv, None, None


def _rows(lengths: Sequence[int]) -> Iterator[tuple[int, Stops]]:
    """For each thread the first token of its rows, and the ones behind their last."""
    stops = np.array(list(itertools.accumulate(lengths)))
    for first, last in shares(lengths):
        yield int(stops[first]) - lengths[first], stops[first:last]


def _readable(values: torch.Tensor) -> torch.Tensor:
    """The values in bfloat16 or float32, the last dimension's behind each other: themselves where they are."""
    if values.dtype not in (torch.bfloat16, torch.float32):
        values = values.float()
    return values if values.stride(-1) == 1 else values.contiguous()


def _told(values: torch.Tensor) -> tuple[int, tuple[int, int]]:
    """Where they lie: the address, and the strides of the first two dimensions."""
    return values.data_ptr(), (values.stride(0), values.stride(1))


def _half(values: torch.Tensor) -> int:
    return int(values.dtype == torch.bfloat16)
