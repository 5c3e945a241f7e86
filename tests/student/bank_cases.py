"""Rows, runs and comparisons that the tests of the bank share."""

from __future__ import annotations

import math

from safetensors.torch import load_file, save_file

from benchmarks.peft_loop import fresh_weights, peft_adapted, train_alone
from student.bank import Bank
from student.bank_step import Limits, step
from student.inner_loop import Row
from student.packing import enable_packing
from student.slot import Slot
from tutelage.domain.self_edit import Rejection
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import write_tiny_model

RELATIVE = 1e-4


def make_pair(tmp_path_factory, batched=None):
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


def alone(loaded: LoadedModel, rows, loop, seed, parent=None):
    losses: list[float] = []
    with peft_adapted(loaded, parent=parent, fresh=loop, seed=seed) as model:
        train_alone(model, rows, loop, seed, losses.append)
        return losses, fresh_weights(model)


def difference(one, other) -> float:
    """Of the effects B A of two adapters, over all projections, relative to the first's."""
    effects = [(b @ a, other.modules[name][1] @ other.modules[name][0]) for name, (a, b) in one.modules.items()]
    apart = sum(float((mine - theirs).norm() ** 2) for mine, theirs in effects)
    return math.sqrt(apart / sum(float(mine.norm() ** 2) for mine, _ in effects))


def apart(one, other) -> float:
    """Of the values of two adapters, relative to the first's.

    The effects of some mixes say less: where a gradient is below AdamW's epsilon, rounding decides its first step.
    """
    pairs = [(x, y) for name in one.modules for x, y in zip(one.modules[name], other.modules[name], strict=True)]
    return math.sqrt(sum(float((x - y).norm() ** 2) for x, y in pairs) / sum(float(x.norm() ** 2) for x, _ in pairs))
