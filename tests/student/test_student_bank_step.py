"""A step of many slots: passes within a limit, on several cores, and what fails in one of them ends alone."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import student.bank_step as bank_step
from student.bank import Bank
from student.bank_step import Limits, StepFailed, passes_of, step
from student.packing import enable_packing
from student.slot import Slot
from tests.student.bank_cases import RELATIVE, WHOLE, alone, difference, row, run, smooth_steps
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.models.loading import LoadedModel, load_model


def test_a_failed_step_leaves_the_slots_as_they_were(
    pair: tuple[Bank, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, reference = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3, batch_size=1)
    rows = [row(20, 1), row(9, 2)]
    slot = Slot(bank, rows, loop, 1)
    forward = bank.loaded.model.get_submodule("model.layers.0").forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        forward(*args, **kwargs)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(bank.loaded.model.get_submodule("model.layers.0"), "forward", broken)
        with pytest.raises(StepFailed) as failed:
            list(step(bank, [slot], WHOLE))
    assert failed.value.slots == [slot]
    run(bank, [slot])
    assert difference(alone(reference, rows, loop, 1)[1], slot.adapter.weights()) < RELATIVE


def test_layers_computed_anew_by_a_thread_of_autograd_have_their_adapters(
    pair: tuple[Bank, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where the backward pass is not in the thread that called it."""
    bank, reference = pair
    assert bank.workers == 1
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=2)
    rows, backward = [row(20, 1), row(9, 2)], torch.Tensor.backward

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(backward, *args, **kwargs).result()

    monkeypatch.setattr(torch.Tensor, "backward", elsewhere)
    slot = Slot(bank, rows, loop, 1)
    assert run(bank, [slot], Limits(4096, 0)) == {slot: None}
    monkeypatch.undo()
    assert difference(alone(reference, rows, loop, 1)[1], slot.adapter.weights()) < RELATIVE


def test_nothing_of_a_pass_is_left_behind(pair: tuple[Bank, LoadedModel]) -> None:
    bank, _ = pair
    seen: list[weakref.ref[object]] = []
    layer = bank.loaded.model.get_submodule("model.layers.0")
    hook = layer.register_forward_pre_hook(lambda *_: seen.append(weakref.ref(bank._current.routing)))
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=2)
    try:
        run(bank, [Slot(bank, [row(20, 1), row(9, 2)], loop, 1)])
    finally:
        hook.remove()
    gc.collect()
    assert len(seen) == 4
    assert [routing() for routing in seen] == [None] * 4


class Sized:
    """A slot as `passes_of` sees it."""

    def __init__(self, lengths: list[int], first_layer: int) -> None:
        self.batch = [row(length, i) for i, length in enumerate(lengths)]
        self.first_layer = first_layer


sizes = st.builds(Sized, st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(0, 1))


@given(st.lists(sizes, min_size=1, max_size=12), st.integers(1, 600))
def test_passes_hold_every_row_once_in_order_and_keep_to_the_limit(slots: list[Any], most: int) -> None:
    passes = passes_of(slots, most)
    for slot in slots:
        parts = [part for parts in passes for part in parts if part.slot is slot]
        assert [each for part in parts for each in part.rows] == slot.batch
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    for parts in passes:
        assert sum(part.tokens for part in parts) <= most or sum(len(part.rows) for part in parts) == 1
        assert len({part.slot.first_layer for part in parts}) == 1


@pytest.mark.parametrize(
    ("works", "threads"), [(1, [6]), (2, [3, 3]), (3, [2, 2, 2]), (4, [1, 2, 1, 2]), (8, 2 * [1, 2, 1, 2])]
)
def test_works_side_by_side_have_all_threads_among_them(tiny_path: Path, works: int, threads: list[int]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(6)
    try:
        bank = Bank(load_model(str(tiny_path), quantisation="none", device="cpu", threads=6))
        assert bank.workers == 4
        # Twice, as the same workers have another share each time.
        bank.side_by_side([torch.get_num_threads] * 4)
        assert sorted(bank.side_by_side([torch.get_num_threads] * works)) == sorted(threads)
        bank.close()
    finally:
        torch.set_num_threads(before)


def test_passes_on_several_cores_learn_what_passes_in_turn_learn(pair: tuple[Bank, LoadedModel]) -> None:
    """And each slot's step is taken once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        loaded = load_model(pair[0].loaded.name, quantisation="nf4", device="cpu", compute_dtype="float32", threads=2)
        enable_packing(loaded.model)
        shared = Bank(loaded)
    finally:
        torch.set_num_threads(threads)
    assert shared.workers == 2
    seen: set[str] = set()
    layer = loaded.model.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda *_: seen.add(threading.current_thread().name))
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3, batch_size=2)
    rows = [[row(8 + 5 * j + i, 7 * i + j) for j in range(3)] for i in range(5)]
    slots, apart = ([Slot(bank, each, loop, i) for i, each in enumerate(rows)] for bank in (shared, pair[0]))
    assert set(run(shared, slots).values()) == {None}
    run(pair[0], apart)
    assert len(seen) == 2
    for mine, theirs in zip(slots, apart, strict=True):
        assert mine.trained().steps == theirs.trained().steps == 6
        assert difference(theirs.adapter.weights(), mine.adapter.weights()) < RELATIVE
    shared.close()


def test_no_pass_beside_another_is_computed_again(
    pair: tuple[Bank, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers are told so for all threads: the first pass to end would end it for the others."""
    bank, _ = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=1, batch_size=4)
    slots = [Slot(bank, [row(20 + i + j, i) for j in range(4)], loop, i) for i in range(4)]
    taken: list[tuple[int, int]] = []
    real = bank_step.backward

    def watched(bank: Any, parts: Any, limits: Any) -> Any:
        taken.append((sum(part.tokens for part in parts), limits.kept_tokens))
        return real(bank, parts, limits)

    monkeypatch.setattr(bank_step, "backward", watched)
    monkeypatch.setattr(bank, "workers", 2)
    assert set(run(bank, slots, Limits(4096, 120)).values()) == {None}
    assert {kept for _, kept in taken} == {60}
    assert max(tokens for tokens, _ in taken) <= 60
    assert sum(tokens for tokens, _ in taken) == sum(len(each.ids) for slot in slots for each in slot._batches[0])


def test_a_pass_that_fails_on_one_core_leaves_the_others_steps(pair: tuple[Bank, LoadedModel]) -> None:
    shared = pair[0]
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3)
    good, bad = Slot(shared, [row(20, 1)], loop, 1), Slot(shared, [row(9, 2)], loop, 2)
    real = bank_step.backward

    def broken(bank: Any, parts: Any, limits: Any) -> Any:
        if any(part.slot is bad for part in parts):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(bank, parts, limits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank_step, "backward", broken)
        patch.setattr(shared, "workers", 2)
        with pytest.raises(StepFailed) as failed:
            list(step(shared, [bad, good], WHOLE))
    assert failed.value.slots == [bad]
    assert (good.trained().steps, bad.trained().steps) == (1, 0)


def test_where_a_pass_cannot_be_begun_those_begun_are_waited_for(
    pair: tuple[Bank, LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as for want of threads: else they would still compute on slots that others have gone on with."""
    release, ended = threading.Event(), []
    pool = ThreadPoolExecutor(1)
    begin = pool.submit

    def full(on_threads: Any, threads: Any, work: Any) -> Any:
        if work is not slow:
            threading.Timer(0.05, release.set).start()
            raise RuntimeError("can't start new thread")
        return begin(on_threads, threads, work)

    def slow() -> None:
        release.wait(20)
        ended.append(True)

    monkeypatch.setattr(pool, "submit", full)
    monkeypatch.setattr(pair[0], "_pool", pool)
    with pytest.raises(RuntimeError, match="new thread"):
        pair[0].side_by_side([slow, lambda: None])
    assert ended
    pool.shutdown()


def test_a_slot_that_cannot_learn_fails_alone(pair: tuple[Bank, LoadedModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one whose optimiser finds no memory: who comes after it takes the same step again."""
    bank, reference = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3)
    rows = [row(20, 1), row(9, 2)]
    with smooth_steps():
        first, broken, last = (Slot(bank, rows, loop, seed) for seed in (1, 2, 3))

    def no_memory(loss: float) -> None:
        raise MemoryError

    monkeypatch.setattr(broken, "learn", no_memory)
    with pytest.raises(StepFailed) as failed:
        list(step(bank, [first, broken, last], WHOLE))
    assert failed.value.slots == [broken]
    run(bank, [first, last])
    for seed, slot in ((1, first), (3, last)):
        assert slot.trained().steps == 6
        with smooth_steps():
            expected = alone(reference, rows, loop, seed)[1]
        assert difference(expected, slot.adapter.weights()) < RELATIVE


def test_a_gradient_is_written_anew_each_step_and_is_zero_where_no_token_came(pair: tuple[Bank, LoadedModel]) -> None:
    """What the vector held before, not a number or a part of another step, is never read."""
    bank, reference = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=2, batch_size=2)
    rows = [row(20, 1), row(9, 2)]
    slot = Slot(bank, rows, loop, 1)
    assert slot.adapter.grad_P is not None
    slot.adapter.grad_P.fill_(torch.nan)
    run(bank, [slot], Limits(10))
    assert difference(alone(reference, rows, loop, 1)[1], slot.adapter.weights()) < RELATIVE
    other = Slot(bank, rows, loop, 1).adapter
    assert other.grad_P is not None
    other.grad_P.fill_(torch.nan)
    written = next(iter(other.families))
    assert [other.beta(written), other.beta(written)] == [0, 1]
    other.complete_gradient()
    assert int(other.grad_P.isnan().sum()) == sum(
        gradient.numel()
        for joint in (other.families[written],)
        for gradient in (joint.da_JI, *(member.db_RO for member in joint.members.values()))
        if gradient is not None
    )
