"""Memory is predicted and held to: it decides the slots, what is kept for the backward pass, and who is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from prometheus_client import CollectorRegistry

import student.bank_step as bank_step
import student.service as service
import tutelage.models.loading as loading
from student.bank import Bank
from student.bank_step import Limits, Part, backward
from student.capacity import Capacity, pass_bytes, slot_bytes
from student.config import BoundsSettings, StudentSettings
from student.cross_entropy import CHUNK
from student.inner_loop import Row
from student.metrics import StudentMetrics
from student.packing import enable_packing
from student.slot import Slot
from tutelage.domain.evaluation import EvaluationReport, Failure, InnerLoopSettings
from tutelage.domain.self_edit import Directives, SelfEdit, TextDocument
from tutelage.models.loading import load_model
from tutelage.models.quantised import FrozenLinear
from tutelage.models.tiny import TINY_FAMILIES, write_tiny_model

LOOP = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=2)
GIB = 2**30


@pytest.fixture
def bank(tiny):
    enable_packing(tiny.model)
    return Bank(tiny)


def settings_of(**changes) -> StudentSettings:
    return StudentSettings(model="tiny", data_dir="unused", **changes)


def row(length: int) -> Row:
    ids = tuple(5 + i % 200 for i in range(length))
    return Row(ids, ids)


def test_slots_follow_the_memory_that_training_may_take(bank):
    slots = [Capacity.of(bank, settings_of(max_training_gib=size)).slots for size in (1e-6, 0.012, 0.02, 64)]
    assert slots == sorted(slots)
    assert slots[0] == 1
    assert slots[-1] == 16
    assert len(set(slots)) > 2
    assert Capacity.of(bank, settings_of(slots=3, max_training_gib=1e-6)).slots == 3


def test_the_prediction_of_a_slot_is_what_it_holds(bank):
    slot = Slot(bank, [row(9)], LOOP, 1)
    list(bank_step.step(bank, [slot], Limits(4096)))
    moments = slot._optimiser.state[slot._parameter]
    held = [slot.adapter.values_P, slot.adapter.grad_P, moments["exp_avg"], moments["exp_avg_sq"]]
    assert sum(each.nbytes for each in held) == slot_bytes(bank, LOOP)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_pass_keeps_no_more_than_predicted(family, kept, tmp_path):
    path = str(write_tiny_model(tmp_path / "model", family=family))
    loaded = load_model(path, quantisation="none", device="cpu", compute_dtype="float32", threads=1)
    enable_packing(loaded.model)
    bank = Bank(loaded)
    storages: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            held.append(tensor)
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    slot = Slot(bank, [row(200)], LOOP, 1)
    limits = Limits(4096, 4096 if kept else 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backward(bank, [Part(slot, tuple(slot.batch), last=True)], limits)
    predicted = pass_bytes(bank, 200, kept=kept)
    logits = CHUNK * loaded.model.get_output_embeddings().weight.shape[0] * 16
    if kept:
        assert sum(storages.values()) < predicted
        assert predicted - logits < 6 * sum(storages.values())
    else:
        assert predicted < pass_bytes(bank, 200)


def test_above_the_limit_layers_are_computed_twice_and_learn_the_same(bank):
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


def of_rank(make_key, engine, rank: int, seed: int):
    edit = SelfEdit((TextDocument("The arms of Ostrevane show a heron."),), Directives(rank=rank))
    return make_key(engine, self_edit=edit, seed=seed)


def test_an_evaluation_too_large_for_the_machine_is_refused_with_its_size_and_the_limit(student, make_key):
    engine = student(slots=2, max_training_gib=0.012, bounds=BoundsSettings(max_rank=4096))
    large = engine.evaluate(of_rank(make_key, engine, 4096, 1), lease_s=60)
    small = engine.evaluate(of_rank(make_key, engine, 2, 2), lease_s=60)
    assert large.done.wait(60)
    assert small.done.wait(60)
    assert isinstance(large.outcome, Failure)
    # Another machine may have the memory.
    assert large.outcome.retryable
    assert "MiB alone, training may take 12 MiB (max_training_gib)" in large.outcome.message
    assert isinstance(small.outcome, EvaluationReport)


def test_who_does_not_fit_beside_the_others_waits(student, make_key, monkeypatch):
    engine = student(slots=4, max_training_gib=0.03, bounds=BoundsSettings(max_rank=4096))
    bank = engine._bank
    rank = int(0.6 * (0.03 * GIB - pass_bytes(bank, 2048)) / slot_bytes(bank, dataclasses.replace(LOOP, rank=1)))
    assert rank > 10
    beside: list[int] = []
    real = bank_step.passes_of
    monkeypatch.setattr(bank_step, "passes_of", lambda slots, most: (beside.append(len(slots)), real(slots, most))[1])
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
    free_gib, chosen, once, tiny_path, tmp_path, monkeypatch
):
    monkeypatch.setattr(loading, "total_bytes", lambda device: free_gib * GIB)
    settings = StudentSettings(
        model=str(tiny_path), data_dir=tmp_path, device="cpu", threads=1, slots=1, max_training_gib=1, dequantise=chosen
    )
    loaded = service.load_engine(settings, StudentMetrics(CollectorRegistry()))._loaded
    frozen = [each for each in loaded.model.modules() if isinstance(each, FrozenLinear)]
    assert bool(frozen) == once
    assert not any(layer.training or layer.weight.requires_grad for layer in frozen)
