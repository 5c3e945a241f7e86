"""The bank: one frozen base that carries many LoRA adapters at once, each acting on its own tokens.

A forward pass is one flat sequence of tokens. `Routing` says which stretch of it belongs to which adapters; the base's
projections run once over all tokens, so each weight is dequantised once forward and once backward whatever the number
of adapters, and each adapter adds its `B A x` to its own stretch. Gradients go straight into an adapter's own buffer:
no adapter is ever touched by another one's tokens.

An adapter is one flat float32 vector with an A and a B for each projection in it, so that clipping and AdamW are one
call an adapter. Shape suffixes: N tokens of all stretches, S tokens of one, I and O features in and out, R rank, P all
values of an adapter.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from student.lora import LoraWeights
from tutelage.domain.errors import InvalidInput
from tutelage.models.loading import LoadedModel
from tutelage.models.quantised import frozen_weight

Result = TypeVar("Result")
MOST_WORKERS = 4
"""Passes at once; the interpreter runs between the products of one at a time."""


@dataclass(frozen=True)
class Projection:
    """A linear layer of the base that can carry LoRA."""

    name: str
    in_features: int
    out_features: int


class BankAdapter:
    """One LoRA adapter in a flat vector `values_P`; with `trainable`, `grad_P` collects its gradient."""

    def __init__(
        self, projections: Sequence[Projection], rank: int, scaling: float, device: torch.device, *, trainable: bool
    ) -> None:
        self.projections, self.rank, self.scaling = tuple(projections), rank, scaling
        size = sum(rank * (p.in_features + p.out_features) for p in projections)
        self.values_P = torch.zeros(size, device=device)
        self.grad_P = torch.zeros(size, device=device) if trainable else None
        self.factors = self._views(self.values_P)
        self.gradients = self._views(self.grad_P) if self.grad_P is not None else {}

    def _views(self, flat_P: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(A [R, I], B transposed [R, O]) by projection, as views of the flat vector.

        B lies transposed, because its gradient then is a product of long rows, which takes half the time on a CPU.
        """
        views, at = {}, 0
        for p in self.projections:
            middle, end = at + self.rank * p.in_features, at + self.rank * (p.in_features + p.out_features)
            a_RI = flat_P[at:middle].view(self.rank, p.in_features)
            b_RO = flat_P[middle:end].view(self.rank, p.out_features)
            views[p.name], at = (a_RI, b_RO), end
        return views

    def initialise(self, seed: int) -> None:
        """PEFT's start: A uniform after Kaiming with a = sqrt(5), B zero."""
        # An own generator on the CPU: the same start on every device, and no state shared between adapters.
        generator = torch.Generator().manual_seed(seed)
        for a_RI, b_RO in self.factors.values():
            start_RI = torch.empty(a_RI.shape)
            nn.init.kaiming_uniform_(start_RI, a=5**0.5, generator=generator)
            a_RI.copy_(start_RI)
            b_RO.zero_()

    def freeze(self) -> None:
        """Gives up the gradient."""
        self.grad_P, self.gradients = None, {}

    def weights(self) -> LoraWeights:
        """A copy on the CPU, scaling folded in."""
        return LoraWeights(
            {
                name: (a_RI.detach().cpu().clone(), (b_RO.detach().cpu() * self.scaling).T.contiguous())
                for name, (a_RI, b_RO) in self.factors.items()
            }
        )

    @classmethod
    def frozen(cls, weights: LoraWeights, device: torch.device) -> BankAdapter:
        """A committed version, as it acts and without a gradient."""
        projections = [Projection(name, a.shape[1], b.shape[0]) for name, (a, b) in weights.modules.items()]
        adapter = cls(projections, weights.rank, 1.0, device, trainable=False)
        for name, (a_RI, b_RO) in adapter.factors.items():
            a_RI.copy_(weights.modules[name][0])
            b_RO.copy_(weights.modules[name][1].T)
        return adapter


@dataclass(frozen=True)
class Stretch:
    """Tokens [start, stop) of the flat sequence and the adapters that act on them, in this order."""

    start: int
    stop: int
    adapters: tuple[BankAdapter, ...]


@dataclass
class Routing:
    """What the projections look up in one pass."""

    stretches: tuple[Stretch, ...] = ()
    """They cover all tokens, in their order."""
    anchor: torch.Tensor | None = None
    """Requires a gradient, so that autograd reaches adapters it does not know of."""
    _last: tuple[torch.Tensor, list[torch.Tensor]] | None = None

    def parts(self, x_NI: torch.Tensor) -> list[torch.Tensor]:
        """The stretches of x [N, I] in float32; projections that read the same x share them."""
        if self._last is not None and _same(self._last[0], x_NI):
            return self._last[1]
        parts = list(x_NI.float().split(self.sizes))
        # Held with x itself, so that no other tensor can come to lie where x lay.
        self._last = (x_NI, parts)
        return parts

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each stretch."""
        return [stretch.stop - stretch.start for stretch in self.stretches]


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype


class _Adapted(torch.autograd.Function):
    """base(x), and scaling B A x of each stretch's adapters; backward, the adapters' gradients are written.

    One function for both, so that the sums are formed in place. LoRA computes in float32 whatever the base's dtype, as
    PEFT does.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor | None, layer: nn.Module, name: str, routing: Routing
    ) -> torch.Tensor:
        y: torch.Tensor = layer(x)
        y_NO = y.view(-1, y.shape[-1])
        # In float32 this is y itself.
        sum_NO = y_NO.float()
        xs, sums = routing.parts(x.flatten(0, -2)), sum_NO.split(routing.sizes)
        inner = []
        for stretch, x_SI, sum_SO in zip(routing.stretches, xs, sums, strict=True):
            for adapter in stretch.adapters:
                factors = adapter.factors.get(name)
                if factors is None:
                    continue
                h_SR = x_SI @ factors[0].T
                sum_SO.addmm_(h_SR, factors[1], alpha=adapter.scaling)
                inner.append(h_SR if adapter.grad_P is not None else None)
        if sum_NO.dtype != y.dtype:
            y_NO.copy_(sum_NO)
        if anchor is not None:
            ctx.save_for_backward(x)
            ctx.inner, ctx.layer, ctx.name, ctx.routing = inner, layer, name, routing
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        (grad,) = gradients
        (x,) = ctx.saved_tensors
        routing: Routing = ctx.routing
        inner = iter(ctx.inner)
        g_NO = grad.flatten(0, -2)
        dx_NI = g_NO @ frozen_weight(ctx.layer, grad.dtype) if ctx.needs_input_grad[0] else None
        sum_NI = dx_NI.float() if dx_NI is not None else None
        xs, gs = routing.parts(x.flatten(0, -2)), g_NO.float().split(routing.sizes)
        sums = [None] * len(gs) if sum_NI is None else sum_NI.split(routing.sizes)
        for stretch, x_SI, g_SO, sum_SI in zip(routing.stretches, xs, gs, sums, strict=True):
            for adapter in stretch.adapters:
                factors = adapter.factors.get(ctx.name)
                if factors is None:
                    continue
                h_SR = next(inner)
                dh_SR = g_SO @ factors[1].T
                if sum_SI is not None:
                    sum_SI.addmm_(dh_SR, factors[0], alpha=adapter.scaling)
                if h_SR is not None:
                    da_RI, db_RO = adapter.gradients[ctx.name]
                    da_RI.addmm_(dh_SR.T, x_SI, alpha=adapter.scaling)
                    db_RO.addmm_(h_SR.T, g_SO, alpha=adapter.scaling)
        if dx_NI is not None and sum_NI is not None:
            dx_NI = sum_NI.to(dx_NI.dtype).view(x.shape)
        return dx_NI, None, None, None, None


class BankLinear(nn.Module):
    """A projection of the base and, on top of it, the adapters of each stretch."""

    def __init__(self, base: nn.Module, name: str, current: _Current) -> None:
        super().__init__()
        self.base = base
        self._name, self._current = name, current

    @property
    def weight(self) -> Any:
        """The base's; some models look at its dtype."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        routing = self._current.routing
        if not any(self._name in a.factors for stretch in routing.stretches for a in stretch.adapters):
            plain: torch.Tensor = self.base(x)
            return plain
        anchor = routing.anchor if torch.is_grad_enabled() else None
        adapted: torch.Tensor = _Adapted.apply(x, anchor, self.base, self._name, routing)
        return adapted


def layer_of(name: str) -> int:
    """The number of the decoder layer that a module of this name is part of; a large one where it is part of none."""
    found = re.search(r"\blayers\.(\d+)\.", name)
    return int(found.group(1)) if found else 2**31


def linear_layers(loaded: LoadedModel) -> list[Projection]:
    """All linear layers of the base but the head; ask before the bank is on the model."""
    head = loaded.model.get_output_embeddings()
    # Quantised layers of bitsandbytes are subclasses of nn.Linear.
    return [
        Projection(name, module.in_features, module.out_features)
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


def targeted(
    projections: Sequence[Projection], target_modules: Sequence[str], first_layer: int = 0
) -> list[Projection]:
    """Those that carry LoRA: the ones named, by their last part or in full, or all when none is named.

    Of decoder layers only those from `first_layer` on. Raises InvalidInput when a name matches no projection.
    """
    projections = [p for p in projections if layer_of(p.name) >= first_layer]

    def named(projection: Projection, target: str) -> bool:
        return projection.name == target or projection.name.endswith("." + target)

    for target in target_modules:
        if not any(named(projection, target) for projection in projections):
            short_names = sorted({projection.name.rsplit(".", 1)[-1] for projection in projections})
            raise InvalidInput.of("settings.target_modules", target, ", ".join(short_names))
    if not target_modules:
        return list(projections)
    return [p for p in projections if any(named(p, target) for target in target_modules)]


class _Current(threading.local):
    """The routing of the pass that a thread is in."""

    def __init__(self) -> None:
        self.routing = Routing()


@dataclass(eq=False)
class Bank:
    """A loaded base with its projections open for adapters.

    One thread uses it at a time; `side_by_side` spreads what is independent over the cores.
    """

    loaded: LoadedModel
    projections: list[Projection] = field(init=False)
    device: torch.device = field(init=False)
    workers: int = field(init=False)
    """Passes that run at once, each on its share of the threads."""
    _threads: int = field(init=False)
    _current: _Current = field(init=False, default_factory=_Current)
    _pool: ThreadPoolExecutor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.device = torch.device(self.loaded.device)
        for name, module in list(self.loaded.model.named_modules()):
            # A model that carried a bank before belongs to the new one.
            if isinstance(module, BankLinear):
                parent, _, child = name.rpartition(".")
                setattr(self.loaded.model.get_submodule(parent), child, module.base)
        self.projections = linear_layers(self.loaded)
        for projection in self.projections:
            parent, _, child = projection.name.rpartition(".")
            module = self.loaded.model.get_submodule(parent)
            setattr(module, child, BankLinear(getattr(module, child), projection.name, self._current))
        self._threads = torch.get_num_threads()
        shareable = self.device.type == "cpu" and _shareable(self.loaded.model)
        self.workers = min(self._threads, MOST_WORKERS) if shareable else 1
        if self.workers > 1:
            share = self._threads // self.workers
            self._pool = ThreadPoolExecutor(
                self.workers, thread_name_prefix="pass", initializer=lambda: torch.set_num_threads(share)
            )

    @contextmanager
    def routed(self, stretches: Sequence[Stretch], *, training: bool = False) -> Iterator[None]:
        """Within the block this thread's tokens, flattened, go through these adapters."""
        anchor = torch.zeros((), device=self.device, requires_grad=True) if training else None
        self._current.routing = Routing(tuple(stretches), anchor)
        try:
            yield
        finally:
            self._current.routing = Routing()

    def side_by_side(self, works: Sequence[Callable[[], Result]]) -> list[Result]:
        """Does all works, on the cores at once where there are several; raises the first error after all have ended."""
        if len(works) == 1 or self._pool is None:
            # A thread that first computes after a worker did would take over the worker's share.
            if torch.get_num_threads() != self._threads:
                torch.set_num_threads(self._threads)
            return [work() for work in works]
        futures = [self._pool.submit(work) for work in works]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _shareable(model: nn.Module) -> bool:
    """Whether passes may run at once: some rotary embeddings change with the length of what they see."""
    scaling = getattr(model.config, "rope_parameters", None) or getattr(model.config, "rope_scaling", None) or {}
    return not any(kind in str(scaling) for kind in ("dynamic", "longrope"))
