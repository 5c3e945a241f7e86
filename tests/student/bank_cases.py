"""Rows, runs and comparisons that the tests of the bank share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.peft_loop import fresh_weights, peft_adapted, train_alone
from student.bank import Bank
from student.bank_step import Limits, step
from student.inner_loop import Row
from student.lora import LoraWeights
from student.packing import enable_packing
from student.slot import Slot
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.self_edit import Rejection
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import write_tiny_model

RELATIVE = 1e-4


def make_pair(tmp_path_factory: pytest.TempPathFactory, batched: bool | None = None) -> tuple[Bank, LoadedModel]:
    """The same NF4 model twice: for the bank, and for PEFT."""
    path = write_tiny_model(tmp_path_factory.mktemp("bank") / "model")
    # At their random start the weights pass on gradients so small that AdamW's epsilon and rounding decide steps.
    weights = load_file(path / "model.safetensors")
    grown = {name: 4 * value if value.dim() == 2 and "embed" not in name else value for name, value in weights.items()}
    save_file(grown, path / "model.safetensors", metadata={"format": "pt"})
    bank_model, peft_model = (
        load_model(str(path), quantisation="nf4", device="cpu", compute_dtype="float32", threads=1) for _ in range(2)
    )
    enable_packing(bank_model.model)
    return Bank(bank_model, batched), peft_model


def keeping(losses: list[float]) -> Callable[[int, int, float], None]:
    """A slot's progress that keeps each step's loss."""
    return lambda _done, _total, loss: losses.append(loss)


def row(length: int, at: int, masked: int = 0) -> Row:
    ids = tuple(5 + (7 * at + 3 * i) % 200 for i in range(length))
    return Row(ids, (-100,) * masked + ids[masked:])


WHOLE = Limits(4096)


def run(bank: Bank, slots: list[Slot], limits: Limits = WHOLE) -> dict[Slot, Rejection | None]:
    """All slots to their end, a finished one leaving at once."""
    ends: dict[Slot, Rejection | None] = {}
    active = list(slots)
    while active:
        for slot, rejection in step(bank, active, limits):
            if rejection is not None or slot.finished:
                ends[slot] = rejection
        active = [slot for slot in active if slot not in ends]
    return ends


@contextmanager
def smooth_steps() -> Iterator[None]:
    """Within the block AdamW's epsilon is above what gradients are rounded by.

    At its own, 1e-8, rounding decides the step of a value whose gradient is no larger: some keys of a short row have
    such, and their B then differs by some 1e-4.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1e-3))
        yield


def alone(
    loaded: LoadedModel, rows: Sequence[Row], loop: InnerLoopSettings, seed: int, parent: LoraWeights | None = None
) -> tuple[list[float], LoraWeights]:
    losses: list[float] = []
    with peft_adapted(loaded, parent=parent, fresh=loop, seed=seed) as model:
        train_alone(model, rows, loop, seed, losses.append)
        return losses, fresh_weights(model)


def difference(one: LoraWeights, other: LoraWeights) -> float:
    """Of the effects B A of two adapters, over all projections, relative to the first's."""
    effects = [(b @ a, other.modules[name][1] @ other.modules[name][0]) for name, (a, b) in one.modules.items()]
    apart = sum(float((mine - theirs).norm() ** 2) for mine, theirs in effects)
    return math.sqrt(apart / sum(float(mine.norm() ** 2) for mine, _ in effects))


def apart(one: LoraWeights, other: LoraWeights) -> float:
    """Of the values of two adapters, of A and of B each by itself, relative to the first's; the greater.

    A hardly moves from its start: next to it B could be wrong by a tenth and not be seen.
    """
    return max(_relative(one, other, [0]), _relative(one, other, [1]))


def together(one: LoraWeights, other: LoraWeights) -> float:
    """Of all values of two adapters, relative to the first's."""
    return _relative(one, other, [0, 1])


def _relative(one: LoraWeights, other: LoraWeights, factors: list[int]) -> float:
    pairs = [(pair[i], other.modules[name][i]) for name, pair in one.modules.items() for i in factors]
    norm = math.sqrt(sum(float(mine.norm() ** 2) for mine, _ in pairs))
    difference = math.sqrt(sum(float((mine - theirs).norm() ** 2) for mine, theirs in pairs))
    # B is nothing before the first step, and then the other's must be as well.
    if not norm:
        return math.inf if difference else 0.0
    return difference / norm
