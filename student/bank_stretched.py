"""A family of projections with the adapters of each stretch, one stretch after the other: the way of CPUs.

What one stretch needs stays in the cache of a core, in float32, while its few small products are made. Shape suffixes:
N tokens of all stretches, S tokens of one, I and O features in and out, R rank, J the ranks of a family's members.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch

from student.bank_adapter import BankAdapter, Member
from student.routing import Family, Routing


def _ranks(h_SJ: torch.Tensor, member: Member, adapter: BankAdapter) -> torch.Tensor:
    """[S, R] of one member."""
    return h_SJ if h_SJ.shape[1] == adapter.rank else h_SJ.narrow(1, member.at, adapter.rank)


class Stretched(torch.autograd.Function):
    """base(x) of each layer of a family, and scaling B A x of each stretch's adapters.

    Backward, the adapters' gradients are written. One function for all, so that the sums are formed in place. LoRA
    computes in float32 whatever the base's dtype, as PEFT does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor | None, family: Family, routing: Routing
    ) -> tuple[torch.Tensor, ...]:
        floats = routing.scratch.floats
        ys = {name: layer(x) for name, layer in family.layers.items()}
        xs = x.flatten(0, -2).split(routing.sizes)
        parts = {name: y.view(-1, y.shape[-1]).split(routing.sizes) for name, y in ys.items()}
        inner = []
        for i, joints in routing.met(family):
            x_SI = floats("x", xs[i])
            hs_SJ = [x_SI @ joint.a_IJ for _, joint in joints]
            for name, each in parts.items():
                sum_SO = None
                for (adapter, joint), h_SJ in zip(joints, hs_SJ, strict=True):
                    member = joint.members.get(name)
                    if member is None:
                        continue
                    if sum_SO is None:
                        sum_SO = floats("y", each[i])
                    sum_SO.addmm_(_ranks(h_SJ, member, adapter), member.b_RO, alpha=adapter.scaling)
                if sum_SO is not None and sum_SO is not each[i]:
                    each[i].copy_(sum_SO)
            inner.append(hs_SJ)
        if anchor is not None:
            # All that is kept goes this way, so that a pass which is computed again keeps none of it.
            ctx.save_for_backward(x, *chain.from_iterable(inner))
            ctx.family, ctx.routing = family, routing
        return tuple(ys.values())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        x, *saved = ctx.saved_tensors
        inner = iter(saved)
        family, routing = ctx.family, ctx.routing
        floats = routing.scratch.floats
        xs = x.flatten(0, -2).split(routing.sizes)
        gs_NO = {name: gradient.flatten(0, -2) for name, gradient in zip(family.layers, gradients, strict=True)}
        dx_NI = family.backward(gs_NO) if ctx.needs_input_grad[0] else None
        gs = {name: g_NO.split(routing.sizes) for name, g_NO in gs_NO.items()}
        dxs = dx_NI.split(routing.sizes) if dx_NI is not None else None
        for i, joints in routing.met(family):
            hs_SJ = [next(inner) for _ in joints]
            x_SI = floats("x", xs[i])
            dhs_SJ = [h_SJ.new_empty(h_SJ.shape) for h_SJ in hs_SJ]
            betas = [adapter.beta(family.key) for adapter, _ in joints]
            for name, each in gs.items():
                g_SO = None
                for (adapter, joint), h_SJ, dh_SJ, beta in zip(joints, hs_SJ, dhs_SJ, betas, strict=True):
                    member = joint.members.get(name)
                    if member is None:
                        continue
                    if g_SO is None:
                        g_SO = floats("y", each[i])
                    torch.mm(g_SO, member.b_OR, out=_ranks(dh_SJ, member, adapter))
                    if member.db_RO is not None:
                        h_SR = _ranks(h_SJ, member, adapter)
                        member.db_RO.addmm_(h_SR.T, g_SO, beta=beta, alpha=adapter.scaling)
            for (adapter, joint), dh_SJ, beta in zip(joints, dhs_SJ, betas, strict=True):
                if joint.da_JI is not None:
                    joint.da_JI.addmm_(dh_SJ.T, x_SI, beta=beta, alpha=adapter.scaling)
            if dxs is not None:
                sum_SI = floats("x", dxs[i])
                for (adapter, joint), dh_SJ in zip(joints, dhs_SJ, strict=True):
                    sum_SI.addmm_(dh_SJ, joint.a_JI, alpha=adapter.scaling)
                if sum_SI is not dxs[i]:
                    dxs[i].copy_(sum_SI)
        return (dx_NI.view(x.shape) if dx_NI is not None else None), None, None, None
