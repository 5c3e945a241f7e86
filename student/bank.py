"""The bank: one frozen base that carries many LoRA adapters at once, each acting on its own tokens.

A forward pass is one flat sequence of tokens. `Routing` says which stretch of it belongs to which adapters; the base's
projections run once over all tokens, so each weight is dequantised once forward and once backward whatever the number
of adapters, and each adapter adds its `B A x` to its own stretch. Gradients go straight into an adapter's own buffer:
no adapter is ever touched by another one's tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from student.bank_adapter import Projection
from student.bank_batched import Batched
from student.bank_stretched import Stretched
from student.routing import Family, Routing, Stretch
from tutelage.models.loading import LoadedModel
from tutelage.models.quantised import is_packed

Result = TypeVar("Result")
MOST_WORKERS = 4
"""Passes at once; the interpreter runs between the products of one at a time."""


class BankLinear(nn.Module):
    """A projection of the base and, on top of it, the adapters of each stretch."""

    def __init__(
        self,
        base: nn.Module,
        name: str,
        family: Family,
        current: _Current,
        products: type[Stretched] | type[Batched],
    ) -> None:
        super().__init__()
        self.base = base
        self._name, self._family, self._current, self._products = name, family, current, products

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
        outputs = self._products.apply(x, anchor, self._family, routing)
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
    """The routing of the one pass that runs."""

    def __init__(self) -> None:
        self.routing = Routing()


class _CurrentOfThread(threading.local, _Current):
    """The routing of the pass that this thread is in."""


@dataclass(eq=False)
class Bank:
    """A loaded base with its projections open for adapters.

    One thread uses it at a time; `side_by_side` spreads what is independent over the cores.
    """

    loaded: LoadedModel
    batched: bool | None = None
    """Whether adapters act together, as batched products; None is for what is faster on the device."""
    projections: list[Projection] = field(init=False)
    device: torch.device = field(init=False)
    workers: int = field(init=False)
    """Passes that run at once, each on its share of the threads."""
    unpacked: int = field(init=False)
    """Values of the largest weight that each pass dequantises, one at a time; 0 where none is."""
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
        packed = [layer for layer in self.loaded.model.modules() if isinstance(layer, nn.Linear) and is_packed(layer)]
        self.unpacked = max((layer.in_features * layer.out_features for layer in packed), default=0)
        self._threads = torch.get_num_threads()
        shareable = self.device.type == "cpu" and _shareable(self.loaded.model)
        self.workers = min(self._threads, MOST_WORKERS) if shareable else 1
        # On a GPU the backward pass is another thread's, which computes checkpointed layers anew: it must see the same.
        self._current = _CurrentOfThread() if self.workers > 1 else _Current()
        batched = self.device.type == "cuda" if self.batched is None else self.batched
        if not batched and self.device.type != "cpu":
            raise ValueError(f"batched: False is for CPUs, not for {self.device}")
        products = Batched if batched else Stretched
        families: dict[str, Family] = {}
        for projection in self.projections:
            parent, _, child = projection.name.rpartition(".")
            module = self.loaded.model.get_submodule(parent)
            base = getattr(module, child)
            family = families.setdefault(projection.family, Family(projection.family, {}))
            family.layers[projection.name] = base
            setattr(module, child, BankLinear(base, projection.name, family, self._current, products))
        if self.workers > 1:
            self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="pass")

    @contextmanager
    def routed(self, stretches: Sequence[Stretch], *, training: bool = False) -> Iterator[None]:
        """Within the block this thread's tokens, flattened, go through these adapters."""
        anchor = torch.zeros((), device=self.device, requires_grad=True) if training else None
        routing = self._current.routing = Routing(tuple(stretches), anchor, self.device)
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
        futures: list[Future[Result]] = []
        # Of more works than workers as many are under way as there are workers.
        among = min(len(works), self.workers)
        shares = [max(1, (i + 1) * self._threads // among - i * self._threads // among) for i in range(among)]
        try:
            for i, work in enumerate(works):
                futures.append(self._pool.submit(_on_threads, shares[i % among], work))
        finally:
            # Also where one could not be begun: nobody may go on while others still compute on the same slots.
            wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _on_threads(threads: int, work: Callable[[], Result]) -> Result:
    """Does it on so many threads of torch's, of this one thread's own."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return work()


def _shareable(model: nn.Module) -> bool:
    """Whether passes may run at once: some rotary embeddings change with the length of what they see."""
    scaling = getattr(model.config, "rope_parameters", None) or getattr(model.config, "rope_scaling", None) or {}
    return not any(kind in str(scaling) for kind in ("dynamic", "longrope"))
