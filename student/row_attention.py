"""Causal attention of many short rows in one call, for CPUs.

torch's flash kernel costs far more than its arithmetic on rows of some dozen tokens, above all backward in bfloat16.
Here the probabilities of a row are formed whole, and kept for the backward pass: a short row has few. What they are
formed from is in float32, as some models attend by large scores; the other products are in bfloat16 where the model is
and the row is long enough to gain by it. Grouped-query heads are folded into the rows of one product and
never repeated.
Shape suffixes: H query heads, G key heads, N tokens of all rows, T those of one, E features of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

HALF = 48
"""Tokens from which on a row's products are faster in bfloat16, where the model is."""


@functools.cache
def _causal(places: int) -> torch.Tensor:
    """[P, P]: 0 where a token may look, -inf where it may not."""
    later_PP = torch.ones(places, places, dtype=torch.bool).triu(1)
    return torch.zeros(places, places).masked_fill_(later_PP, -torch.inf)


def _rows(lengths: Sequence[int], dtype: torch.dtype) -> Iterator[tuple[slice, int, torch.dtype]]:
    """Each row's place and length, and what it is computed in."""
    at = 0
    for length in lengths:
        yield slice(at, at + length), length, dtype if length >= HALF else torch.float32
        at += length


def _probabilities(q: torch.Tensor, k: torch.Tensor, length: int, scale: float) -> torch.Tensor:
    """[G, H/G * T, T] of one row, from q [G, H/G * T, E] and k [G, T, E], all in float32."""
    # A corner of a larger one, so that few of them are kept.
    mask_TT = _causal(1 << (length - 1).bit_length())[:length, :length]
    return torch.softmax(torch.baddbmm(mask_TT.repeat(q.shape[1] // length, 1), q, k.transpose(1, 2), alpha=scale), -1)


class RowAttention(torch.autograd.Function):
    """q [1, H, N, E], k and v [1, G, N, E], row lengths, scale -> [1, N, H, E] in the dtype of q."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], scale: float
    ) -> torch.Tensor:
        _, heads, tokens, features = q.shape
        q_HNE, k_GNE, v_GNE = q[0], k[0], v[0]
        out_NHE = q.new_empty(tokens, heads, features)
        probabilities = []
        for at, length, dtype in _rows(lengths, q.dtype):
            folded = q_HNE[:, at].float().reshape(k.shape[1], -1, features)
            p = _probabilities(folded, k_GNE[:, at].float(), length, scale).to(dtype)
            seen = torch.bmm(p, v_GNE[:, at].to(dtype))
            out_NHE[at].copy_(seen.view(heads, length, features).transpose(0, 1))
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.lengths, ctx.scale = lengths, scale
        return out_NHE.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        q, k, v, *probabilities = ctx.saved_tensors
        _, heads, _, features = q.shape
        q_HNE, k_GNE, v_GNE = q[0], k[0], v[0]
        g_HNE = gradients[0][0].transpose(0, 1)
        dq_HNE, dk_GNE, dv_GNE = torch.empty_like(q_HNE), torch.empty_like(k_GNE), torch.empty_like(v_GNE)
        for (at, length, dtype), p in zip(_rows(ctx.lengths, q.dtype), probabilities, strict=True):
            folded = q_HNE[:, at].to(dtype).reshape(k.shape[1], -1, features)
            g = g_HNE[:, at].to(dtype).reshape(k.shape[1], -1, features)
            dv_GNE[:, at] = torch.bmm(p.transpose(1, 2), g)
            dp = torch.bmm(g, v_GNE[:, at].to(dtype).transpose(1, 2))
            # The derivative of softmax, p * (dp - sum(p * dp)); in one call it sums in float32 whatever the dtype.
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, dtype).mul_(ctx.scale)
            dq_HNE[:, at] = torch.bmm(ds, k_GNE[:, at].to(dtype)).view(heads, length, features)
            dk_GNE[:, at] = torch.bmm(ds.transpose(1, 2), folded)
        return dq_HNE.unsqueeze(0), dk_GNE.unsqueeze(0), dv_GNE.unsqueeze(0), None, None
