"""A family of projections with the adapters of each stretch, one stretch after the other: the way of CPUs.

Shape suffixes: N tokens of all stretches, I and O features in and out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from student.bank_products import add_adapters, derive_adapters, scratch_values
from student.routing import Family, Routing
from student.scratch import scratch


class Stretched(torch.autograd.Function):
    """base(x) of each layer of a family, and scaling B A x of each stretch's adapters.

    Backward, the adapters' gradients are written. LoRA computes in float32 whatever the base's dtype, as PEFT does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor | None, family: Family, routing: Routing
    ) -> tuple[torch.Tensor, ...]:
        ys = [layer(x) for layer in family.layers.values()]
        lines = routing.lines(family)
        inner = torch.empty(lines.inner, dtype=torch.float32)
        x_NI = _products(x)
        held = [_products(y) for y in ys]
        outs = np.array([y.shape[-1] for y in ys])
        room = scratch(scratch_values(x.shape[-1], int(outs.max()), lines.most_ranks))
        add_adapters(
            lines.table, lines.scalings, x_NI.data_ptr(), int(x_NI.dtype == torch.bfloat16), x.shape[-1],
            np.array([y.data_ptr() for y in held]), outs, inner.data_ptr(), room,
        )  # fmt: skip
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
        x_NI = _products(x)
        held = [_products(g_NO) for g_NO in gs_NO.values()]
        sums_NI = None if dx_NI is None else _products(dx_NI)
        outs = np.array([g.shape[-1] for g in held])
        lines.begin(family.key)
        room = scratch(scratch_values(x.shape[-1], int(outs.max()), lines.most_ranks))
        derive_adapters(
            lines.table, lines.scalings, x_NI.data_ptr(), int(x_NI.dtype == torch.bfloat16), x.shape[-1],
            np.array([g.data_ptr() for g in held]), outs, inner.data_ptr(),
            0 if sums_NI is None else sums_NI.data_ptr(), room,
        )  # fmt: skip
        if dx_NI is not None and sums_NI is not None and sums_NI is not dx_NI:
            dx_NI.copy_(sums_NI)
        return (dx_NI.view(x.shape) if dx_NI is not None else None), None, None, None


def _products(values: torch.Tensor) -> torch.Tensor:
    """The values as the products read them, row by row, in bfloat16 or float32: themselves where they lie so."""
    readable = values.dtype in (torch.bfloat16, torch.float32)
    return (values if readable else values.float()).contiguous()
