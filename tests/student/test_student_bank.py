"""The bank: every slot learns what it would learn alone through PEFT, whatever its neighbours are and do."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peft import PeftModel

from student.adapters import AdapterStore
from student.bank import Bank
from student.bank_adapter import BankAdapter, targeted
from student.bank_step import Limits
from student.packing import enable_packing, packed_inputs
from student.routing import Stretch
from student.slot import Slot
from tests.student.bank_cases import RELATIVE, alone, apart, difference, keeping, row, run, smooth_steps, together
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.self_edit import Schedule
from tutelage.models.loading import LoadedModel, Quantisation, load_model
from tutelage.models.tiny import TINY_FAMILIES, write_tiny_model

loops = st.builds(
    InnerLoopSettings,
    rank=st.sampled_from([1, 3, 4, 8]),
    alpha=st.sampled_from([4.0, 8.0, 16.0]),
    learning_rate=st.sampled_from([1e-4, 1e-3, 5e-3]),
    epochs=st.integers(1, 3),
    batch_size=st.integers(1, 3),
    schedule=st.sampled_from(list(Schedule)),
    max_grad_norm=st.sampled_from([0.0, 0.5, 1.0]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    target_modules=st.sampled_from([(), ("q_proj", "v_proj"), ("down_proj",)]),
    adapt_last_layers=st.sampled_from([0, 0, 1]),
)
edits = st.lists(st.builds(row, st.integers(3, 40), st.integers(0, 50), st.integers(0, 2)), min_size=1, max_size=4)


@settings(
    max_examples=10,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    mix=st.lists(st.tuples(edits, loops), min_size=2, max_size=8),
    most=st.sampled_from([10, 40, 200, 4096]),
    kept=st.sampled_from([0, 50, 4096]),
    smooth=st.booleans(),
)
def test_each_slot_of_a_mix_learns_what_it_would_learn_alone(
    pair: tuple[Bank, LoadedModel], mix: list[Any], most: int, kept: int, smooth: bool
) -> None:
    """With AdamW's own epsilon all values together; with a smooth one A and B, each by itself."""
    bank, reference = pair
    losses: list[list[float]] = [[] for _ in mix]
    measure = apart if smooth else together
    with smooth_steps() if smooth else nullcontext():
        slots = [
            Slot(bank, rows, loop, seed, progress=keeping(own))
            for seed, ((rows, loop), own) in enumerate(zip(mix, losses, strict=True))
        ]
        assert set(run(bank, slots, Limits(most, kept)).values()) == {None}
        for seed, (rows, loop) in enumerate(mix):
            expected, weights = alone(reference, rows, loop, seed)
            assert losses[seed] == pytest.approx(expected, rel=RELATIVE)
            assert measure(weights, slots[seed].adapter.weights()) < RELATIVE


def test_the_effects_of_a_bank_of_eight_are_those_of_eight_alone(pair: tuple[Bank, LoadedModel]) -> None:
    """Different rates, ranks, epochs, batches, schedules and lengths; neighbours end long before others.

    With AdamW's own epsilon the losses of each step. With a smooth one the effects too: over ten epochs some values
    whose gradients are within rounding take steps of their own, which on one processor is not seen and on another is.
    """
    bank, reference = pair
    mix = [
        (
            [row(8 + 5 * j + 3 * i, 7 * i + j, j) for j in range(2 + i % 3)],
            InnerLoopSettings(
                rank=(2, 4, 8)[i % 3],
                alpha=16,
                learning_rate=(1e-3, 3e-3, 5e-3)[i % 3],
                epochs=2 + i,
                batch_size=1 + i % 2,
                schedule=list(Schedule)[i % 3],
            ),
        )
        for i in range(8)
    ]
    for smooth in (False, True):
        losses: list[list[float]] = [[] for _ in mix]
        with smooth_steps() if smooth else nullcontext():
            slots = [
                Slot(bank, rows, loop, seed, progress=keeping(losses[seed])) for seed, (rows, loop) in enumerate(mix)
            ]
            assert set(run(bank, slots).values()) == {None}
            for seed, (rows, loop) in enumerate(mix):
                expected, weights = alone(reference, rows, loop, seed)
                assert losses[seed] == pytest.approx(expected, rel=RELATIVE)
                assert not smooth or difference(weights, slots[seed].adapter.weights()) < RELATIVE


def test_a_neighbour_that_is_not_a_number_ends_alone_and_changes_nothing(pair: tuple[Bank, LoadedModel]) -> None:
    bank, reference = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=4, batch_size=2)
    rows = [row(20, 1), row(9, 2, 2), row(33, 3)]
    good = Slot(bank, rows, loop, 1)
    broken = Slot(bank, rows, loop, 2)
    broken.adapter.values_P.fill_(math.nan)
    ends = run(bank, [broken, good])
    assert ends[good] is None
    rejection = ends[broken]
    assert rejection is not None
    assert "diverged" in rejection.message
    assert difference(alone(reference, rows, loop, 1)[1], good.adapter.weights()) < RELATIVE


def test_a_slot_over_a_parent_learns_what_peft_learns_over_it(pair: tuple[Bank, LoadedModel], tmp_path: Path) -> None:
    bank, reference = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3, batch_size=1)
    rows = [row(20, 1), row(9, 2, 2)]
    parent = alone(reference, rows, loop, 1)[1]
    frozen = BankAdapter.frozen(parent, bank.device)
    slot, beside = Slot(bank, rows[::-1], loop, 2, parent=frozen), Slot(bank, rows, loop, 3)
    run(bank, [slot, beside])
    expected = alone(reference, rows[::-1], loop, 2, parent=parent)[1]
    assert difference(expected, slot.adapter.weights()) < RELATIVE
    assert difference(parent, frozen.weights()) == 0


def test_the_exported_adapter_gives_the_same_logits_through_peft(
    pair: tuple[Bank, LoadedModel], tmp_path: Path
) -> None:
    bank, _ = pair
    slot = Slot(bank, [row(20, 1)], InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3), 5)
    run(bank, [slot])
    adapter = AdapterStore(tmp_path).save(
        slot.adapter.weights(), parent="", evaluation_id="e" * 64, base_model="tiny", base_revision="r"
    )
    ids = torch.arange(5, 30)[None]
    with torch.no_grad(), bank.routed([Stretch(0, 25, slot.adapters)]):
        ours = bank.loaded.model(ids).logits
    base = load_model(bank.loaded.name, quantisation="nf4", device="cpu", compute_dtype="float32")
    plain = base.model(ids).logits.detach()
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base.model, str(tmp_path / adapter.version))(ids).logits
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours - plain).abs().max() > 1e-3


@pytest.mark.parametrize("batched", [False, True], ids=["stretched", "batched"])
@pytest.mark.parametrize("quantisation", ["none", "nf4", "int8"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_other_families_work_unchanged(family: str, quantisation: Quantisation, batched: bool, tmp_path: Path) -> None:
    """Losses of packed rows equal those of each row alone, and training lowers them."""
    path = str(write_tiny_model(tmp_path / "model", family=family))
    loaded = load_model(path, quantisation=quantisation, device="cpu", compute_dtype="float32", threads=1)
    rows = [row(30, 1), row(12, 2, 3), row(21, 3)]
    with torch.no_grad():
        expected = [loaded.model(torch.tensor([each.ids])).logits[0] for each in rows]
    enable_packing(loaded.model)
    bank = Bank(loaded, batched)
    lengths = [len(each.ids) for each in rows]
    ids_N = torch.tensor([token for each in rows for token in each.ids])
    with torch.no_grad():
        packed = loaded.model(**packed_inputs(ids_N, lengths, bank.device)).logits[0]
    for part, whole in zip(packed.split(lengths), expected, strict=True):
        assert (part - whole).abs().max() < 1e-4
    losses: list[float] = []
    loop = InnerLoopSettings(rank=4, alpha=16, learning_rate=1e-2, epochs=6, batch_size=3)
    slot = Slot(bank, rows, loop, 1, progress=lambda _done, _total, loss: losses.append(loss))
    assert run(bank, [slot])[slot] is None
    assert losses[-1] < losses[0] - 0.01


def test_unknown_projections_are_named(pair: tuple[Bank, LoadedModel]) -> None:
    with pytest.raises(InvalidInput, match=r"target_modules.*q_proj"):
        Slot(pair[0], [row(9, 1)], InnerLoopSettings(target_modules=("nope",)), 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batched_products_are_those_of_each_stretch(dtype: str, tmp_path: Path) -> None:
    """Parents, ranks and scalings of all kinds, stretches with no adapter between others, and short ones."""
    path = str(write_tiny_model(tmp_path / "model"))
    loaded = load_model(path, quantisation="nf4", device="cpu", compute_dtype=dtype, threads=1)
    enable_packing(loaded.model)
    lengths = [5, 90, 1, 12, 130, 7]
    ids_N = torch.arange(sum(lengths)) % 200 + 5
    logits = []
    for batched in (False, True):
        bank = Bank(loaded, batched)

        def adapter(seed: int, rank: int, names: tuple[str, ...] = (), bank: Bank = bank) -> BankAdapter:
            made = BankAdapter(targeted(bank.projections, names), rank, 16 / rank, bank.device, trainable=False)
            made.values_P.copy_(0.1 * torch.randn(len(made.values_P), generator=torch.Generator().manual_seed(seed)))
            return made

        parent = adapter(1, 4)
        mixes = [
            (parent,),
            (parent, adapter(2, 8)),
            (),
            (adapter(3, 4, ("v_proj", "down_proj")),),
            (),
            (adapter(4, 3),),
        ]
        stops = list(itertools.accumulate(lengths))
        stretches = [Stretch(stop - length, stop, mix) for length, stop, mix in zip(lengths, stops, mixes, strict=True)]
        with torch.inference_mode(), bank.routed(stretches):
            logits.append(loaded.model(**packed_inputs(ids_N, lengths, bank.device)).logits[0].float())
    untouched = torch.cat([torch.arange(95, 96), torch.arange(108, 238)])
    with torch.inference_mode():
        plain = loaded.model(**packed_inputs(ids_N, lengths, torch.device("cpu"))).logits[0].float()
    assert torch.equal(logits[1][untouched], plain[untouched])
    assert (logits[0] - plain).abs().max() > 0.05
    tolerance = 1e-5 if dtype == "float32" else 0.02
    assert (logits[0] - logits[1]).abs().max() < tolerance * plain.abs().max()
