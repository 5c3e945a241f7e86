"""A family of projections with the adapters of each stretch, one stretch after the other: the way of CPUs.

Shape suffixes: N tokens of all stretches, I and O features in and out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from student.bank_lines import Lines, Scalings, Table
from student.bank_products import add_adapters, derive_adapters, scratch_values
from student.routing import Family, Routing
from student.scratch import scratch
from student.shares import side_by_side


class Stretched(torch.autograd.Function):
    """base(x) of each layer of a family, and scaling B A x of each stretch's adapters.

    Backward, the adapters' gradients are written. LoRA computes in float32 whatever the base's dtype, as PEFT does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor | None, family: Family, routing: Routing
    ) -> tuple[torch.Tensor, ...]:
        # What is compiled would not notice.
        if x.numel() != x.shape[-1] * routing.stretches[-1].stop:
            raise ValueError(f"{family.key} read {tuple(x.shape)}, of {routing.stretches[-1].stop} tokens in all")
        ys = [layer(x) for layer in family.layers.values()]
        lines = routing.lines(family)
        inner = torch.empty(lines.inner, dtype=torch.float32)
        x_NI = _readable(x)
        held = [_readable(y) for y in ys]
        outs, room = _outs(x, ys, lines)
        places = np.array([y.data_ptr() for y in held])

        def add(table: Table, scalings: Scalings) -> None:
            add_adapters(
                table, scalings, x_NI.data_ptr(), _half(x_NI), x.shape[-1], places, outs, inner.data_ptr(),
                scratch(room),
            )  # fmt: skip

        side_by_side([partial(add, *share) for share in lines.shares()])
        for y, each in zip(ys, held, strict=True):
            if y is not each:
                y.copy_(each)
        if anchor is not None:
            # All that is kept goes this way, so that a pass which is computed again keeps none of it.
            ctx.save_for_backward(x, inner)
            ctx.family, ctx.routing = family, routing
        return tuple(ys)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        x, inner = ctx.saved_tensors
        family, routing = ctx.family, ctx.routing
        lines = routing.lines(family)
        gs_NO = {name: gradient.flatten(0, -2) for name, gradient in zip(family.layers, gradients, strict=True)}
        dx_NI = family.backward(gs_NO) if ctx.needs_input_grad[0] else None
        x_NI = _readable(x)
        held = [_readable(g_NO) for g_NO in gs_NO.values()]
        sums_NI = None if dx_NI is None else _readable(dx_NI)
        outs, room = _outs(x, held, lines)
        places, dx = np.array([g.data_ptr() for g in held]), 0 if sums_NI is None else sums_NI.data_ptr()
        lines.begin(family.key)

        def derive(table: Table, scalings: Scalings) -> None:
            derive_adapters(
                table, scalings, x_NI.data_ptr(), _half(x_NI), x.shape[-1], places, outs, inner.data_ptr(), dx,
                scratch(room),
            )  # fmt: skip

        side_by_side([partial(derive, *share) for share in lines.shares()])
        if dx_NI is not None and sums_NI is not None and sums_NI is not dx_NI:
            dx_NI.copy_(sums_NI)
        return (dx_NI.view(x.shape) if dx_NI is not None else None), None, None, None


def _readable(values: torch.Tensor) -> torch.Tensor:
    """The values as the products read them, row by row, in bfloat16 or float32: themselves where they lie so."""
    return (values if values.dtype in (torch.bfloat16, torch.float32) else values.float()).contiguous()


def _half(values: torch.Tensor) -> int:
    return int(values.dtype == torch.bfloat16)


def _outs(x: torch.Tensor, ys: Sequence[torch.Tensor], lines: Lines) -> tuple[np.ndarray[Any, Any], int]:
    """The features out of each projection, and the values of scratch that a thread needs."""
    outs = [y.shape[-1] for y in ys]
    return np.array(outs), scratch_values(x.shape[-1], max(outs), lines.most_ranks)
