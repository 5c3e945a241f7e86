"""LoRA weights as plain tensors: two adapters become one, and one of too high a rank becomes one of a lower rank.

Shapes: A is [rank, in], B is [out, rank], both float32 on the CPU. The scaling (alpha / rank) is folded into B, so an
adapter's effect on a projection is exactly `B @ A`. The full matrix [out, in] is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LoraWeights:
    """One adapter: (A, B) by the dotted name of the projection in the base model. All share one rank."""

    modules: dict[str, tuple[torch.Tensor, torch.Tensor]]

    @property
    def rank(self) -> int:
        return next(iter(self.modules.values()))[0].shape[0] if self.modules else 0

    @property
    def bytes(self) -> int:
        return sum(a.numel() * a.element_size() + b.numel() * b.element_size() for a, b in self.modules.values())

    def finite(self) -> bool:
        return all(bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all()) for a, b in self.modules.values())


def concatenate(first: LoraWeights, second: LoraWeights) -> LoraWeights:
    """One adapter with the sum of both effects; its rank is the sum of both ranks.

    A projection that only one of them touches gets zeros for the other, so that the rank stays the same everywhere.
    """

    def padded(weights: LoraWeights, name: str, like: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if name in weights.modules:
            return weights.modules[name]
        a, b = like
        return a.new_zeros(weights.rank, a.shape[1]), b.new_zeros(b.shape[0], weights.rank)

    modules = {}
    for name in sorted({**first.modules, **second.modules}):
        present = first.modules.get(name) or second.modules[name]
        a1, b1 = padded(first, name, present)
        a2, b2 = padded(second, name, present)
        modules[name] = (torch.cat([a1, a2]).contiguous(), torch.cat([b1, b2], dim=1).contiguous())
    return LoraWeights(modules)


def recompress(weights: LoraWeights, max_rank: int) -> LoraWeights:
    """The nearest adapter of at most `max_rank` (Eckart-Young): QR of both factors, then an SVD of [rank, rank]."""
    if weights.rank <= max_rank:
        return weights
    modules = {}
    for name, (a, b) in weights.modules.items():
        q_b, r_b = torch.linalg.qr(b.double())
        q_a, r_a = torch.linalg.qr(a.double().T)
        u, s, vh = torch.linalg.svd(r_b @ r_a.T)
        kept = min(max_rank, s.shape[0])
        root = s[:kept].sqrt()
        new_b, new_a = q_b @ (u[:, :kept] * root), (root[:, None] * vh[:kept]) @ q_a.T
        # A projection thinner than max_rank still needs the common rank: zeros change nothing.
        short = max_rank - kept
        new_a = torch.nn.functional.pad(new_a, (0, 0, 0, short))
        new_b = torch.nn.functional.pad(new_b, (0, short))
        modules[name] = (new_a.float().contiguous(), new_b.float().contiguous())
    return LoraWeights(modules)
