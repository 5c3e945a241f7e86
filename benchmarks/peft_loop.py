"""The inner loop as one writes it with PEFT: one edit at a time, every row alone, no padding.

What the student's bank is held to: its losses and its adapter in the tests, its speed in the benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from student.bank_adapter import layer_of
from student.inner_loop import Row, learning_rate_at, micro_batches
from student.lora import LoraWeights
from student.lower_layers import first_adapted
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.models.chat import NO_LOSS
from tutelage.models.loading import LoadedModel

PARENT, FRESH = "parent", "fresh"


def _layers(model: nn.Module, adapter: str) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and adapter in module.lora_A:
            yield name, module


def _linear_names(loaded: LoadedModel) -> list[str]:
    head = loaded.model.get_output_embeddings()
    return [n for n, m in loaded.model.named_modules() if isinstance(m, nn.Linear) and m is not head]


@contextmanager
def peft_adapted(
    loaded: LoadedModel,
    *,
    parent: LoraWeights | None = None,
    fresh: InnerLoopSettings | None = None,
    seed: int = 0,
) -> Iterator[nn.Module]:
    """The base with the parent version frozen and a fresh adapter to train; afterwards as it was.

    The start is drawn as the bank draws it: Kaiming-uniform A by one generator, projection after projection.
    """
    configs = {}
    if parent is not None:
        names = list(parent.modules)
        configs[PARENT] = LoraConfig(r=parent.rank, lora_alpha=parent.rank, target_modules=names, lora_dropout=0.0)
    if fresh is not None:
        first = first_adapted(loaded.model, fresh.adapt_last_layers)
        named = [n for n in _linear_names(loaded) if not fresh.target_modules or n.endswith(fresh.target_modules)]
        targets = [name for name in named if layer_of(name) >= first]
        configs[FRESH] = LoraConfig(r=fresh.rank, lora_alpha=fresh.alpha, target_modules=targets, lora_dropout=0.0)
    peft_model: PeftModel | None = None
    for name, config in configs.items():
        if peft_model is None:
            peft_model = get_peft_model(loaded.model, config, adapter_name=name)
        else:
            peft_model.add_adapter(name, config)
    if peft_model is None:
        yield loaded.model
        return
    try:
        peft_model.base_model.set_adapter(list(configs))
        model: nn.Module = peft_model.base_model.model
        generator = torch.Generator().manual_seed(seed)
        for _, layer in _layers(model, FRESH):
            start = torch.empty(layer.lora_A[FRESH].weight.shape)
            nn.init.kaiming_uniform_(start, a=5**0.5, generator=generator)
            layer.lora_A[FRESH].weight.data.copy_(start)
            layer.lora_B[FRESH].weight.data.zero_()
        for name, layer in _layers(model, PARENT):
            assert parent is not None
            layer.lora_A[PARENT].weight.data.copy_(parent.modules[name][0])
            layer.lora_B[PARENT].weight.data.copy_(parent.modules[name][1])
        for parameter in loaded.model.parameters():
            parameter.requires_grad_(False)
        for parameter in fresh_parameters(model):
            parameter.requires_grad_(True)
        loaded.model.eval()
        yield model
    finally:
        peft_model.unload()
        if hasattr(loaded.model, "peft_config"):
            del loaded.model.peft_config


def fresh_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The fresh adapter's, A before B, projection after projection."""
    return [
        parameter
        for _, layer in _layers(model, FRESH)
        for parameter in (layer.lora_A[FRESH].weight, layer.lora_B[FRESH].weight)
    ]


def fresh_weights(model: nn.Module) -> LoraWeights:
    """A copy of the fresh adapter, scaling folded in."""
    return LoraWeights(
        {
            name: (
                layer.lora_A[FRESH].weight.detach().float().clone(),
                layer.lora_B[FRESH].weight.detach().float() * float(layer.scaling[FRESH]),
            )
            for name, layer in _layers(model, FRESH)
        }
    )


def row_loss(model: nn.Module, row: Row) -> torch.Tensor:
    """Cross-entropy summed over the row's supervised tokens, nats."""
    device = next(model.parameters()).device
    ids_1T, targets_T = torch.tensor([row.ids], device=device), torch.tensor(row.labels[1:], device=device)
    kept_K = (targets_T != NO_LOSS).nonzero().squeeze(1)
    output = model(input_ids=ids_1T, use_cache=False, logits_to_keep=kept_K)
    return nn.functional.cross_entropy(output.logits[0].float(), targets_T[kept_K], reduction="sum")


def train_alone(
    model: nn.Module,
    rows: Sequence[Row],
    settings: InnerLoopSettings,
    seed: int,
    progress: Callable[[float], None] = lambda loss: None,
    steps: int | None = None,
) -> None:
    """Trains the fresh adapter in place; `progress` is told each step's loss. `steps` ends it early."""
    parameters = fresh_parameters(model)
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    batches = micro_batches(rows, settings, seed)
    for step, batch in enumerate(batches[:steps]):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, len(batches), settings)
        optimiser.zero_grad(set_to_none=True)
        supervised, mean = sum(row.supervised for row in batch), 0.0
        for row in batch:
            share = row_loss(model, row) / supervised
            share.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            mean += float(share.detach())
        nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm or math.inf)
        optimiser.step()
        progress(mean)
