"""The bank: one frozen base that carries many LoRA adapters at once, each acting on its own tokens.

A forward pass is one flat sequence of tokens. `Routing` says which stretch of it belongs to which adapters; the base's
projections run once over all tokens, so each weight is dequantised once forward and once backward whatever the number
of adapters, and each adapter adds its `B A x` to its own stretch. Gradients go straight into an adapter's own buffer:
no adapter is ever touched by another one's tokens.

Projections that read the same input are one step: the first that is asked computes for all of them. Shape suffixes: N
tokens of all stretches, S tokens of one, I and O features in and out, R rank, J the ranks of a family's members.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import nn

from student.bank_adapter import BankAdapter, Joint, Member, Projection
from tutelage.models.loading import LoadedModel
from tutelage.models.quantised import frozen_weight

Result = TypeVar("Result")
MOST_WORKERS = 4
"""Passes at once; the interpreter runs between the products of one at a time."""
MOST_VIEWS = 1024
"""Views of a scratch that are kept, of all shapes seen."""


@dataclass(frozen=True)
class Stretch:
    """Tokens [start, stop) of the flat sequence and the adapters that act on them, in this order."""

    start: int
    stop: int
    adapters: tuple[BankAdapter, ...]


class Scratch:
    """Room for a stretch in float32, used again and again: what lies there stays in the cache, and no page is new."""

    def __init__(self) -> None:
        self._rooms: dict[str, torch.Tensor] = {}
        self._views: dict[tuple[str, torch.Size], torch.Tensor] = {}

    def room(self, place: str, shape: torch.Size, device: torch.device) -> torch.Tensor:
        """A tensor of any values, that lasts until the place is used again."""
        view = self._views.get((place, shape))
        if view is None:
            values = shape.numel()
            whole = self._rooms.get(place)
            # One made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                if whole is None or whole.numel() < values:
                    whole = self._rooms[place] = torch.empty(values, device=device)
                    self._views.clear()
                if len(self._views) == MOST_VIEWS:
                    self._views.clear()
                view = self._views[place, shape] = whole[:values].view(shape)
        return view

    def floats(self, place: str, values: torch.Tensor) -> torch.Tensor:
        """The values in float32: themselves if they are, else a copy that lasts until the place is used again."""
        if values.dtype == torch.float32:
            return values
        return self.room(place, values.shape, values.device).copy_(values)


@dataclass
class Routing:
    """What the projections look up in one pass."""

    stretches: tuple[Stretch, ...] = ()
    """They cover all tokens, in their order."""
    anchor: torch.Tensor | None = None
    """Requires a gradient, so that autograd reaches adapters it does not know of."""
    scratch: Scratch = field(default_factory=Scratch)
    _ahead: tuple[torch.Tensor, dict[str, torch.Tensor]] | None = None
    _met: dict[str, list[tuple[int, list[tuple[BankAdapter, Joint]]]]] = field(default_factory=dict)

    def keep_ahead(self, x: torch.Tensor, outputs: dict[str, torch.Tensor]) -> None:
        """What the rest of a family gives for x, until they are asked."""
        # Without its history, which leads back to here: such a ring is never given free.
        self._ahead = (x.detach(), outputs) if outputs else None

    def computed_ahead(self, x: torch.Tensor, name: str) -> torch.Tensor | None:
        """What was kept for this projection and no other input."""
        if self._ahead is None or not _same(self._ahead[0], x):
            return None
        output = self._ahead[1].pop(name, None)
        if not self._ahead[1]:
            self._ahead = None
        return output

    def forget(self) -> None:
        """Lets go of what nobody asked for."""
        self._ahead = None

    @cached_property
    def sizes(self) -> list[int]:
        """Tokens of each stretch."""
        return [stretch.stop - stretch.start for stretch in self.stretches]

    def met(self, family: Family) -> list[tuple[int, list[tuple[BankAdapter, Joint]]]]:
        """The stretches, by their number, in which an adapter has a part in the family, and those parts."""
        if family.key in self._met:
            return self._met[family.key]
        found = self._met[family.key] = []
        for i, stretch in enumerate(self.stretches):
            joints = [
                (adapter, adapter.families[family.key])
                for adapter in stretch.adapters
                if family.key in adapter.families
            ]
            if joints:
                found.append((i, joints))
        return found

    @cached_property
    def families(self) -> frozenset[str]:
        """All in which an adapter has a part."""
        return frozenset(
            family for stretch in self.stretches for adapter in stretch.adapters for family in adapter.families
        )


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype


@dataclass(frozen=True, eq=False)
class Family:
    """Projections of the base that read the same input, computed together."""

    key: str
    layers: dict[str, nn.Module]
    """By the projection's name."""


def _ranks(h_SJ: torch.Tensor, member: Member, adapter: BankAdapter) -> torch.Tensor:
    """[S, R] of one member."""
    return h_SJ if h_SJ.shape[1] == adapter.rank else h_SJ.narrow(1, member.at, adapter.rank)


class _Adapted(torch.autograd.Function):
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
            ctx.save_for_backward(x)
            ctx.inner, ctx.family, ctx.routing = inner, family, routing
        return tuple(ys.values())

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        (x,) = ctx.saved_tensors
        family, routing = ctx.family, ctx.routing
        floats = routing.scratch.floats
        xs = x.flatten(0, -2).split(routing.sizes)
        dx_NI, gs = None, {}
        for (name, layer), gradient in zip(family.layers.items(), gradients, strict=True):
            g_NO = gradient.flatten(0, -2)
            gs[name] = g_NO.split(routing.sizes)
            if ctx.needs_input_grad[0]:
                weight_OI = frozen_weight(layer, g_NO.dtype)
                dx_NI = g_NO @ weight_OI if dx_NI is None else dx_NI.addmm_(g_NO, weight_OI)
        dxs = dx_NI.split(routing.sizes) if dx_NI is not None else None
        for (i, joints), hs_SJ in zip(routing.met(family), ctx.inner, strict=True):
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


class BankLinear(nn.Module):
    """A projection of the base and, on top of it, the adapters of each stretch."""

    def __init__(self, base: nn.Module, name: str, family: Family, current: _Current) -> None:
        super().__init__()
        self.base = base
        self._name, self._family, self._current = name, family, current

    @property
    def weight(self) -> Any:
        """The base's; some models look at its dtype."""
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        routing = self._current.routing
        if self._family.key not in routing.families:
            plain: torch.Tensor = self.base(x)
            return plain
        ready = routing.computed_ahead(x, self._name)
        if ready is not None:
            return ready
        anchor = routing.anchor if torch.is_grad_enabled() else None
        outputs = _Adapted.apply(x, anchor, self._family, routing)
        ahead = dict(zip(self._family.layers, outputs, strict=True))
        adapted: torch.Tensor = ahead.pop(self._name)
        routing.keep_ahead(x, ahead)
        return adapted


def linear_layers(loaded: LoadedModel) -> list[Projection]:
    """All linear layers of the base but the head; ask before the bank is on the model."""
    head = loaded.model.get_output_embeddings()
    # Quantised layers of bitsandbytes are subclasses of nn.Linear.
    return [
        Projection(name, module.in_features, module.out_features)
        for name, module in loaded.model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    ]


class _Current:
    """The routing of the one pass that runs, and its scratch."""

    def __init__(self) -> None:
        self.routing, self.scratch = Routing(), Scratch()


class _CurrentOfThread(threading.local, _Current):
    """The routing of the pass that this thread is in, and the thread's scratch."""


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
    _current: _Current = field(init=False)
    _pool: ThreadPoolExecutor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.device = torch.device(self.loaded.device)
        for name, module in list(self.loaded.model.named_modules()):
            # A model that carried a bank before belongs to the new one.
            if isinstance(module, BankLinear):
                parent, _, child = name.rpartition(".")
                setattr(self.loaded.model.get_submodule(parent), child, module.base)
        self.projections = linear_layers(self.loaded)
        self._threads = torch.get_num_threads()
        shareable = self.device.type == "cpu" and _shareable(self.loaded.model)
        self.workers = min(self._threads, MOST_WORKERS) if shareable else 1
        # On a GPU the backward pass is another thread's, which computes checkpointed layers anew: it must see the same.
        self._current = _CurrentOfThread() if self.workers > 1 else _Current()
        families: dict[str, Family] = {}
        for projection in self.projections:
            parent, _, child = projection.name.rpartition(".")
            module = self.loaded.model.get_submodule(parent)
            base = getattr(module, child)
            family = families.setdefault(projection.family, Family(projection.family, {}))
            family.layers[projection.name] = base
            setattr(module, child, BankLinear(base, projection.name, family, self._current))
        if self.workers > 1:
            share = self._threads // self.workers
            self._pool = ThreadPoolExecutor(
                self.workers, thread_name_prefix="pass", initializer=lambda: torch.set_num_threads(share)
            )

    @contextmanager
    def routed(self, stretches: Sequence[Stretch], *, training: bool = False) -> Iterator[None]:
        """Within the block this thread's tokens, flattened, go through these adapters."""
        anchor = torch.zeros((), device=self.device, requires_grad=True) if training else None
        routing = self._current.routing = Routing(tuple(stretches), anchor, self._current.scratch)
        try:
            yield
        finally:
            routing.forget()
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
