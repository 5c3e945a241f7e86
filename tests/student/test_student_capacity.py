"""Memory is predicted and held to: it decides the slots, what is kept for the backward pass, and who is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import student.bank_step as bank_step
import student.service as service
import tutelage.models.loading as loading
from student.bank import Bank
from student.bank_adapter import BankAdapter
from student.bank_step import Limits, Part, backward
from student.capacity import Capacity, Load, pass_bytes, slot_bytes
from student.config import BoundsSettings, StudentSettings
from student.cross_entropy import CHUNK
from student.engine import StudentEngine
from student.heads import plain_head
from student.inner_loop import Row
from student.metrics import StudentMetrics
from student.packing import enable_packing
from student.quiz_room import mean_logliks
from student.slot import Slot
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport, Failure, InnerLoopSettings
from tutelage.domain.self_edit import Directives, SelfEdit, TextDocument
from tutelage.models.loading import Dequantise, LoadedModel, Quantisation, load_model
from tutelage.models.quantised import FrozenLinear
from tutelage.models.tiny import TINY_FAMILIES, write_tiny_model

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory

LOOP = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=2)
GIB = 2**30


@pytest.fixture
def bank(tiny: LoadedModel) -> Bank:
    enable_packing(tiny.model)
    return Bank(tiny)


def settings_of(**changes: Any) -> StudentSettings:
    return StudentSettings(model="tiny", data_dir=Path("unused"), **changes)


def row(length: int) -> Row:
    ids = tuple(5 + i % 200 for i in range(length))
    return Row(ids, ids)


def test_slots_follow_the_memory_that_training_may_take(bank: Bank) -> None:
    slots = [Capacity.of(bank, settings_of(max_training_gib=size)).slots for size in (1e-6, 0.012, 0.02, 64)]
    assert slots == sorted(slots)
    assert slots[0] == 1
    assert slots[-1] == 16
    assert len(set(slots)) > 2
    assert Capacity.of(bank, settings_of(slots=3, max_training_gib=1e-6)).slots == 3


def test_the_prediction_of_a_slot_is_what_it_holds(bank: Bank) -> None:
    for loop in (LOOP, dataclasses.replace(LOOP, adapt_last_layers=1)):
        slot = Slot(bank, [row(9), row(30), row(9)], loop, 1)
        for _ in range(3):
            list(bank_step.step(bank, [slot], Limits(4096)))
        moments = slot._optimiser.state[slot._parameter]
        held = [slot.adapter.values_P, slot.adapter.grad_P, moments["exp_avg"], moments["exp_avg_sq"]]
        below = list(slot.lower.values())
        assert sum(each.nbytes for each in held + below) == slot_bytes(bank, loop, [row(9), row(30), row(9)])
        assert len(below) == (2 if loop.adapt_last_layers else 0)


class Peak(TorchDispatchMode):
    """The most bytes that tensors made within the block took at once, backward pass included."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if torch.is_tensor(each)}
        output = func(*args, **(kwargs or {}))
        for each in tree_leaves(output):
            storage = each.untyped_storage() if torch.is_tensor(each) else None
            if storage is not None and storage._cdata not in given:
                self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self._live = {key: item for key, item in self._live.items() if not item[0].expired()}
        self.bytes = max(self.bytes, sum(size for _, size in self._live.values()))
        return output


def bank_of(
    path: Path,
    family: str,
    dtype: str = "float32",
    quantisation: Quantisation = "none",
    hidden: int = 128,
    **changes: Any,
) -> Bank:
    folder = str(write_tiny_model(path / "model", family=family, hidden=hidden, layers=4))
    loaded = load_model(folder, quantisation=quantisation, device="cpu", compute_dtype=dtype, threads=1)
    vars(loaded.model.config).update(changes)
    enable_packing(loaded.model)
    return Bank(loaded)


def peak_of(bank: Bank, lengths: list[int], *, kept: bool, rank: int = LOOP.rank, below: int = 0) -> int:
    loop = dataclasses.replace(LOOP, batch_size=len(lengths), rank=rank)
    parent = BankAdapter(bank.projections, below, 1.0, bank.device, trainable=False) if below else None
    slot = Slot(bank, [row(length) for length in lengths], loop, 1, parent=parent)
    peak = Peak()
    with peak:
        backward(bank, [Part(slot, tuple(slot.batch), last=True)], Limits(4096, 4096 if kept else 0))
    return peak.bytes


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "anew"])
@pytest.mark.parametrize(("family", "dtype"), [*((each, "float32") for each in TINY_FAMILIES), ("llama", "bfloat16")])
def test_a_pass_takes_no_more_than_predicted(family: str, dtype: str, kept: bool, tmp_path: Path) -> None:
    """Nor very much less: rows whose attention is formed whole, and longer ones."""
    bank = bank_of(tmp_path, family, dtype)
    lengths = [200, 250, 9, 300, 250]
    peak, predicted = peak_of(bank, lengths, kept=kept), pass_bytes(bank, sum(lengths), kept=kept)
    assert peak < predicted
    assert predicted - pass_bytes(bank, 0) < 3 * peak


@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_a_short_pass_takes_no_more_than_predicted_beside_a_weight_that_it_dequantises(
    quantisation: Quantisation, tmp_path: Path
) -> None:
    """One at a time: those of a large model are far larger than what few tokens leave behind."""
    bank = bank_of(tmp_path, "llama", quantisation=quantisation, hidden=512)
    peak, weight = peak_of(bank, [9], kept=False), 512 * 1024 * 4
    assert weight < peak < pass_bytes(bank, 9, kept=False)
    # What the tokens leave behind is less than a second weight.
    assert peak < 2 * weight


@pytest.mark.parametrize("batched", [False, True], ids=["stretched", "batched"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "anew"])
@pytest.mark.parametrize(("rank", "below"), [(128, 0), (128, 256)])
def test_a_pass_under_adapters_of_high_rank_takes_no_more_than_predicted(
    rank: int, below: int, kept: bool, batched: bool, tmp_path: Path
) -> None:
    bank = bank_of(tmp_path, "llama", "bfloat16")
    bank = Bank(bank.loaded, batched=batched)
    lengths = [200, 250, 9, 300, 250]
    peak = peak_of(bank, lengths, kept=kept, rank=rank, below=below)
    predicted = pass_bytes(bank, sum(lengths), kept=kept, rank=rank + below)
    assert peak < predicted
    assert predicted - pass_bytes(bank, 0) < 3 * peak


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "anew"])
def test_a_pass_of_a_head_that_caps_its_logits_takes_no_more_than_predicted(kept: bool, tmp_path: Path) -> None:
    """Such a head gives those of all labels at once."""
    bank = bank_of(tmp_path, "gemma3", final_logit_softcapping=30.0)
    assert not plain_head(bank.loaded.model)
    # Of a size at which they are most of it.
    head = bank.loaded.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn(8000, head.in_features), requires_grad=False)
    peak, predicted = peak_of(bank, [60] * 10, kept=kept), pass_bytes(bank, 600, kept=kept)
    assert 0.7 * predicted < peak < predicted
    assert peak > 2 * CHUNK * 8000 * 16


def test_likelihoods_of_long_answers_take_little_more_memory_than_their_logits(tmp_path: Path) -> None:
    """A large vocabulary makes them the most that a quiz takes, and no training is told to leave room for it."""
    bank = bank_of(tmp_path, "llama", "bfloat16")
    head = bank.loaded.model.get_output_embeddings()
    head.weight = torch.nn.Parameter(torch.randn(16000, head.in_features).bfloat16(), requires_grad=False)
    rows = [row(100 + i) for i in range(12)]
    with Peak() as peak:
        values = mean_logliks(bank, [((), each) for each in rows])
    logits = 2 * 16000 * sum(each.supervised for each in rows)
    assert logits < peak.bytes < 1.6 * logits
    # A row of few labels is of one chunk.
    assert values[:2] == pytest.approx([mean_logliks(bank, [((), each)])[0] for each in rows[:2]], rel=1e-3)


def test_what_is_remembered_below_the_adapted_layers_takes_room(bank: Bank) -> None:
    capacity = Capacity.of(bank, settings_of(max_training_gib=0.08))
    last = dataclasses.replace(LOOP, adapt_last_layers=1)
    budget = pass_bytes(bank, 2048, rank=last.rank) + slot_bytes(bank, last)
    full = dataclasses.replace(capacity, budget=budget)
    assert full.fits(Load(last))
    assert not full.fits(Load(last, [row(9)]))
    assert dataclasses.replace(full, budget=budget + 9 * 32 * 4).fits(Load(last, [row(9), row(9)]))


def test_rows_longer_than_a_pass_take_the_room_that_they_need(bank: Bank) -> None:
    settings = settings_of(max_training_gib=0.08, max_step_tokens=64)
    capacity = Capacity.of(bank, settings)
    short, long = Load(LOOP, [row(64)]), Load(LOOP, [row(65)])
    budget = pass_bytes(bank, 64, rank=LOOP.rank) + 2 * slot_bytes(bank, LOOP)
    full = dataclasses.replace(capacity, budget=budget)
    assert full.fits(short, [short])
    assert not full.fits(long, [short])
    assert not full.fits(short, [long])
    more = pass_bytes(bank, 65, rank=LOOP.rank) - pass_bytes(bank, 64, rank=LOOP.rank)
    assert dataclasses.replace(full, budget=budget + more).fits(short, [long])


def test_a_pass_takes_what_the_ranks_of_all_its_adapters_take(bank: Bank) -> None:
    """Of a frozen version below the fresh adapter as well, and of a neighbour's."""
    parent = BankAdapter(bank.projections, 4, 1.0, bank.device, trainable=False)
    alone, above = Load(LOOP), Load(LOOP, parent=parent)
    wide = Load(dataclasses.replace(LOOP, rank=2 * LOOP.rank))
    capacity = Capacity.of(bank, settings_of(max_training_gib=0.08))
    for load, beside, rank in (
        (above, [], LOOP.rank + 4),
        (alone, [above], LOOP.rank + 4),
        (alone, [wide], 2 * LOOP.rank),
    ):
        slots = sum(slot_bytes(bank, each.settings) for each in (load, *beside))
        budget = slots + pass_bytes(bank, capacity.limits.tokens, rank=rank)
        assert dataclasses.replace(capacity, budget=budget).fits(load, beside)
        assert not dataclasses.replace(capacity, budget=budget - 1).fits(load, beside)


def test_a_pass_computed_again_is_bounded_as_well(bank: Bank) -> None:
    """But for a deterministic student, whose passes are the same whatever memory is free."""
    size = 0.004
    limits = Capacity.of(bank, settings_of(max_training_gib=size)).limits
    assert limits.kept_tokens < limits.tokens < 2048
    assert pass_bytes(bank, limits.kept_tokens) <= size * GIB / 2
    assert pass_bytes(bank, limits.tokens, kept=False) <= size * GIB / 2
    fixed = Capacity.of(bank, settings_of(max_training_gib=size, deterministic=True))
    assert fixed.limits == Limits(2048, limits.kept_tokens)
    needed = fixed.needed(Load(dataclasses.replace(LOOP, batch_size=60), [row(60 + i) for i in range(60)]))
    assert needed == slot_bytes(bank, LOOP) + pass_bytes(bank, 2048, kept=False, rank=LOOP.rank)


def test_versions_that_are_trained_over_are_counted_once_while_they_are_in_memory(
    bank: Bank, student: EngineFactory, make_key: KeyFactory
) -> None:
    capacity = Capacity.of(bank, settings_of(max_training_gib=0.08))
    budget = pass_bytes(bank, 2048, rank=LOOP.rank) + slot_bytes(bank, LOOP)
    full = dataclasses.replace(capacity, budget=budget)
    assert full.fits(Load(LOOP))
    assert not dataclasses.replace(full, parents=lambda: 1).fits(Load(LOOP))
    parent = BankAdapter(bank.projections, 4, 1.0, bank.device, trainable=False)
    inner = pass_bytes(bank, 9, rank=2 * LOOP.rank) - pass_bytes(bank, 9, rank=LOOP.rank)
    more = capacity.needed(Load(LOOP, [row(9)], parent)) - capacity.needed(Load(LOOP, [row(9)]))
    assert more == slot_bytes(bank, LOOP) / 4 + inner
    engine = student(loaded_adapters=1)
    versions = []
    for seed in (1, 2):
        key = make_key(engine, seed=seed)
        assert engine.evaluate(key, lease_s=60).done.wait(60)
        versions.append(engine.commit(key.id)[0].version)
    assert engine._versions.held_bytes() == 0
    assert engine._versions.get(versions[1]) is not None
    assert engine._versions.held_bytes() == slot_bytes(bank, LOOP) / 4
    held = engine._versions.get(versions[0])
    assert engine._versions.get(versions[1]) is not held
    assert engine._versions.held_bytes() == slot_bytes(bank, LOOP) / 2


def test_above_the_limit_layers_are_computed_twice_and_learn_the_same(bank: Bank) -> None:
    passes = {}
    weights = {}
    for kept in (4096, 10):
        seen: list[int] = []
        layer = bank.loaded.model.get_decoder().layers[0].mlp
        hook = layer.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0].shape[1]))
        slot = Slot(bank, [row(11), row(7)], LOOP, 1)
        while not slot.finished:
            list(bank_step.step(bank, [slot], Limits(4096, kept)))
        hook.remove()
        passes[kept], weights[kept] = sorted(seen), slot.adapter.values_P
    assert passes == {4096: [7, 7, 11, 11], 10: [7, 7, 11, 11, 11, 11]}
    torch.testing.assert_close(weights[10], weights[4096])
    assert not any(layer.training for layer in bank.loaded.model.get_decoder().layers)


def of_rank(make_key: KeyFactory, engine: StudentEngine, rank: int, seed: int) -> EvaluationKey:
    edit = SelfEdit((TextDocument("The arms of Ostrevane show a heron."),), Directives(rank=rank))
    return make_key(engine, self_edit=edit, seed=seed)


def test_an_evaluation_too_large_for_the_machine_is_refused_with_its_size_and_the_limit(
    student: EngineFactory, make_key: KeyFactory
) -> None:
    engine = student(slots=2, max_training_gib=0.012, bounds=BoundsSettings(max_rank=4096))
    large = engine.evaluate(of_rank(make_key, engine, 4096, 1), lease_s=60)
    small = engine.evaluate(of_rank(make_key, engine, 2, 2), lease_s=60)
    assert large.done.wait(60)
    assert small.done.wait(60)
    assert isinstance(large.outcome, Failure)
    # Another machine may have the memory.
    assert large.outcome.retryable
    assert large.outcome.exhausted
    assert "MiB alone, training may take 12 MiB (max_training_gib)" in large.outcome.message
    assert isinstance(small.outcome, EvaluationReport)


def test_who_does_not_fit_beside_the_others_waits(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(slots=4, max_training_gib=0.08, bounds=BoundsSettings(max_rank=4096))
    bank = engine._bank
    rank = int(0.6 * (0.08 * GIB - pass_bytes(bank, 2048)) / slot_bytes(bank, dataclasses.replace(LOOP, rank=1)))
    assert rank > 10
    beside: list[int] = []
    real = bank_step.passes_of

    def counted(slots: Any, most: Any) -> Any:
        beside.append(len(slots))
        return real(slots, most)

    monkeypatch.setattr(bank_step, "passes_of", counted)
    jobs = [engine.evaluate(of_rank(make_key, engine, size, i), lease_s=60) for i, size in enumerate([rank, rank, 2])]
    for job in jobs:
        assert job.done.wait(60)
        assert isinstance(job.outcome, EvaluationReport), job.outcome
    assert max(beside) < 3


@pytest.mark.parametrize(
    ("free_gib", "chosen", "once"),
    [(24, "auto", True), (0, "auto", False), (0, "once", True), (24, "each-pass", False)],
)
def test_weights_are_kept_dequantised_where_there_is_memory_for_it_or_as_the_operator_says(
    free_gib: int, chosen: Dequantise, once: bool, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "total_bytes", lambda device: free_gib * GIB)
    settings = StudentSettings(
        model=str(tiny_path), data_dir=tmp_path, device="cpu", threads=1, slots=1, max_training_gib=1, dequantise=chosen
    )
    loaded = service.load_engine(settings, StudentMetrics(CollectorRegistry()))._loaded
    frozen = [each for each in loaded.model.modules() if isinstance(each, FrozenLinear)]
    assert bool(frozen) == once
    assert not any(layer.training or layer.weight.requires_grad for layer in frozen)
