"""A base model with PEFT adapters on it for as long as a `with` block lasts; afterwards the base is as it was.

The parent version is the frozen adapter `parent`, the one being trained is `fresh`; both are active at the same
time, so the fresh one learns what the parent lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from student.lora import LoraWeights
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.models.loading import LoadedModel

PARENT, FRESH = "parent", "fresh"


def linear_layers(loaded: LoadedModel) -> list[str]:
    """Dotted names of all linear layers but the head; ask before adapters are on the model."""
    head = loaded.model.get_output_embeddings()
    # Quantised layers of bitsandbytes are subclasses of nn.Linear.
    return [n for n, m in loaded.model.named_modules() if isinstance(m, nn.Linear) and m is not head]


def projections(linear: Sequence[str], target_modules: Sequence[str]) -> list[str]:
    """Those of the linear layers that carry LoRA: the ones named, or all when none is named.

    Raises InvalidInput when a name matches no linear layer.
    """
    for target in target_modules:
        if not any(name == target or name.endswith("." + target) for name in linear):
            short_names = sorted({name.rsplit(".", 1)[-1] for name in linear})
            raise InvalidInput.of("settings.target_modules", target, ", ".join(short_names))
    if not target_modules:
        return list(linear)
    return [n for n in linear if any(n == t or n.endswith("." + t) for t in target_modules)]


class AdaptedModel:
    """The model with its adapters; `model` is called like the base."""

    def __init__(self, loaded: LoadedModel, peft_model: PeftModel | None) -> None:
        self.loaded = loaded
        self._peft = peft_model
        self.model: nn.Module = loaded.model if peft_model is None else peft_model.base_model.model

    def _layers(self, adapter: str) -> Iterator[tuple[str, Any]]:
        for name, module in self.model.named_modules():
            if hasattr(module, "lora_A") and adapter in module.lora_A:
                yield name, module

    def trainable(self) -> list[nn.Parameter]:
        """The fresh adapter's parameters, float32, in a fixed order."""
        return [
            parameter
            for _, layer in self._layers(FRESH)
            for parameter in (layer.lora_A[FRESH].weight, layer.lora_B[FRESH].weight)
        ]

    def fresh_weights(self) -> LoraWeights:
        """A copy of the fresh adapter on the CPU, scaling folded in."""
        modules = {}
        for name, layer in self._layers(FRESH):
            a = layer.lora_A[FRESH].weight.detach().float().cpu().clone()
            b = layer.lora_B[FRESH].weight.detach().float().cpu() * float(layer.scaling[FRESH])
            modules[name] = (a, b)
        return LoraWeights(modules)

    def _load(self, adapter: str, weights: LoraWeights) -> None:
        for name, layer in self._layers(adapter):
            a, b = weights.modules[name]
            layer.lora_A[adapter].weight.data.copy_(a)
            layer.lora_B[adapter].weight.data.copy_(b)

    def _initialise(self, seed: int) -> None:
        # An own generator on the CPU: the same start on every device, and no shared state between slots.
        generator = torch.Generator().manual_seed(seed)
        for _, layer in self._layers(FRESH):
            weight = layer.lora_A[FRESH].weight
            start = torch.empty(weight.shape)
            nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
            weight.data.copy_(start)
            layer.lora_B[FRESH].weight.data.zero_()


@contextmanager
def adapted(
    loaded: LoadedModel,
    *,
    parent: LoraWeights | None = None,
    fresh: InnerLoopSettings | None = None,
    seed: int = 0,
) -> Iterator[AdaptedModel]:
    """The base with the parent version frozen and, if asked for, a fresh adapter to train, started from `seed`."""
    configs = {}
    if parent is not None:
        configs[PARENT] = LoraConfig(
            r=parent.rank, lora_alpha=parent.rank, target_modules=list(parent.modules), lora_dropout=0.0, bias="none"
        )
    if fresh is not None:
        targets = projections(linear_layers(loaded), fresh.target_modules)
        configs[FRESH] = LoraConfig(
            r=fresh.rank, lora_alpha=fresh.alpha, target_modules=targets, lora_dropout=0.0, bias="none"
        )
    if not configs:
        yield AdaptedModel(loaded, None)
        return
    peft_model: PeftModel | None = None
    try:
        for name, config in configs.items():
            if peft_model is None:
                peft_model = get_peft_model(loaded.model, config, adapter_name=name)
            else:
                peft_model.add_adapter(name, config)
        assert peft_model is not None
        peft_model.base_model.set_adapter(list(configs))
        view = AdaptedModel(loaded, peft_model)
        if parent is not None:
            view._load(PARENT, parent)
        if fresh is not None:
            view._initialise(seed)
        for parameter in loaded.model.parameters():
            parameter.requires_grad_(False)
        for parameter in view.trainable() if fresh is not None else ():
            parameter.requires_grad_(True)
        loaded.model.eval()
        yield view
    finally:
        if peft_model is not None:
            peft_model.unload()
            if hasattr(loaded.model, "peft_config"):
                del loaded.model.peft_config
