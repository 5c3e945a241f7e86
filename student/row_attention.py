"""Causal attention of many short rows in one call, for CPUs.

torch's flash kernel costs far more than its arithmetic on rows of some dozen tokens, above all backward in bfloat16.
Here the probabilities of a row are formed whole, in float32, and kept for the backward pass: a short row has few.
Grouped-query heads are folded into the rows of one product and never repeated.
Shape suffixes: H query heads, G key heads, N tokens of all rows, T those of one, E features of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch


@functools.lru_cache(maxsize=128)
def _causal(length: int, repeats: int) -> torch.Tensor:
    """[repeats * T, T]: 0 where a token may look, -inf where it may not."""
    later_TT = torch.ones(length, length, dtype=torch.bool).triu(1)
    return torch.zeros(length, length).masked_fill_(later_TT, -torch.inf).repeat(repeats, 1)


def _rows(lengths: Sequence[int]) -> Iterator[tuple[slice, int]]:
    at = 0
    for length in lengths:
        yield slice(at, at + length), length
        at += length


def _probabilities(q: torch.Tensor, k: torch.Tensor, length: int, scale: float) -> torch.Tensor:
    """[G, H/G * T, T] of one row, from q [G, H/G * T, E] and k [G, T, E]."""
    mask = _causal(length, q.shape[1] // length)
    return torch.softmax(torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale), -1)


class RowAttention(torch.autograd.Function):
    """q [1, H, N, E], k and v [1, G, N, E], row lengths, scale -> [1, N, H, E] in the dtype of q."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int], scale: float
    ) -> torch.Tensor:
        _, heads, tokens, features = q.shape
        q_HNE, k_GNE, v_GNE = q[0].float(), k[0].float(), v[0].float()
        out_NHE = q.new_empty(tokens, heads, features)
        probabilities = []
        for at, length in _rows(lengths):
            folded = q_HNE[:, at].reshape(k.shape[1], -1, features)
            p = _probabilities(folded, k_GNE[:, at], length, scale)
            seen = torch.bmm(p, v_GNE[:, at])
            out_NHE[at].copy_(seen.view(heads, length, features).transpose(0, 1))
            probabilities.append(p)
        ctx.save_for_backward(q, k, v, *probabilities)
        ctx.lengths, ctx.scale = lengths, scale
        return out_NHE.unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        q, k, v, *probabilities = ctx.saved_tensors
        _, heads, _, features = q.shape
        q_HNE, k_GNE, v_GNE = q[0].float(), k[0].float(), v[0].float()
        g_HNE = gradients[0][0].transpose(0, 1).float()
        dq_HNE, dk_GNE, dv_GNE = torch.empty_like(q_HNE), torch.empty_like(k_GNE), torch.empty_like(v_GNE)
        for (at, length), p in zip(_rows(ctx.lengths), probabilities, strict=True):
            folded = q_HNE[:, at].reshape(k.shape[1], -1, features)
            g = g_HNE[:, at].reshape(k.shape[1], -1, features)
            dv_GNE[:, at] = torch.bmm(p.transpose(1, 2), g)
            dp = torch.bmm(g, v_GNE[:, at].transpose(1, 2))
            # The derivative of softmax: p * (dp - sum(p * dp)).
            ds = dp.sub_((p * dp).sum(-1, keepdim=True)).mul_(p).mul_(ctx.scale)
            dq_HNE[:, at] = torch.bmm(ds, k_GNE[:, at]).view(heads, length, features)
            dk_GNE[:, at] = torch.bmm(ds.transpose(1, 2), folded)
        return (
            dq_HNE.to(q.dtype).unsqueeze(0),
            dk_GNE.to(k.dtype).unsqueeze(0),
            dv_GNE.to(v.dtype).unsqueeze(0),
            None,
            None,
        )
