"""A packed weight of the base is unpacked once forward and once backward, however many adapters are trained on it.

What is counted is bitsandbytes' own operators: its product with a packed weight unpacks it, and so does the one by
which a backward pass has the weight unpacked.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from student.bank import Bank
from student.bank_step import Limits, passes_of, step
from student.packing import enable_packing
from student.slot import Slot
from tests.student.bank_cases import row
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.models.loading import load_model

LOOP = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=1, batch_size=2)
UNPACKING = ("gemm_4bit", "gemv_4bit", "dequantize_4bit")
PLACES = (0, 1)
"""Where an operator takes the weight: after what it is multiplied with, else first."""


class Unpacked(TorchDispatchMode):
    """Within the block it counts how often each packed weight, by its address, is given to an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.times: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "bitsandbytes" and func.overloadpacket.__name__ in UNPACKING:
            for place in PLACES:
                self.times[args[place].data_ptr()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("again", [0, 1], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("batched", [False, True], ids=["stretched", "batched"])
def test_a_weight_is_unpacked_once_forward_and_once_backward_whatever_the_slots(
    tiny_path: Path, slots: int, again: int, batched: bool
) -> None:
    loaded = load_model(
        str(tiny_path), quantisation="nf4", device="cpu", compute_dtype="float32", threads=1, dequantise="each-pass"
    )
    enable_packing(loaded.model)
    bank = Bank(loaded, batched)
    layers = {
        module.weight.data_ptr(): name.removesuffix(".base")
        for name, module in loaded.model.named_modules()
        if isinstance(module, bnb.nn.Linear4bit)
    }
    assert sorted(layers.values()) == sorted(projection.name for projection in bank.projections)
    limits = Limits(4096, kept_tokens=0 if again else 4096)
    active = [Slot(bank, [row(20 + i, i), row(9, i + 1)], LOOP, i) for i in range(slots)]
    assert (bank.workers, len(passes_of(active, limits.tokens))) == (1, 1)
    with Unpacked() as unpacked:
        assert [end for _, end in step(bank, active, limits)] == [None] * slots
    times = {layers[address]: count for address, count in unpacked.times.items() if address in layers}
    # Nothing is learnt below the lowest layer, so that no gradient passes what reads its input.
    lowest = {f"model.layers.0.self_attn.{part}_proj" for part in "qkv"}
    assert times == {name: 1 + again + (name not in lowest) for name in layers.values()}
