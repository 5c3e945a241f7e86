"""The bank: every slot learns what it would learn alone through PEFT, whatever its neighbours are and do."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file

import student.bank_step as bank_step
from benchmarks.peft_loop import fresh_weights, peft_adapted, train_alone
from student.adapters import AdapterStore
from student.bank import Bank, BankAdapter, Stretch
from student.bank_step import Limits, StepFailed, passes_of, step
from student.inner_loop import PLATEAU, Plateau, Row
from student.packing import enable_packing, packed_inputs
from student.slot import Slot
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.self_edit import Rejection, Schedule
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import TINY_FAMILIES, write_tiny_model

RELATIVE = 1e-4


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


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
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
    return Bank(bank_model), peft_model


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
)
def test_each_slot_of_a_mix_learns_what_it_would_learn_alone(pair, mix, most, kept):
    bank, reference = pair
    losses: list[list[float]] = [[] for _ in mix]
    slots = [
        Slot(bank, rows, loop, seed, progress=lambda _done, _total, loss, own=own: own.append(loss))
        for seed, ((rows, loop), own) in enumerate(zip(mix, losses, strict=True))
    ]
    assert set(run(bank, slots, Limits(most, kept)).values()) == {None}
    for seed, (rows, loop) in enumerate(mix):
        expected, weights = alone(reference, rows, loop, seed)
        assert losses[seed] == pytest.approx(expected, rel=RELATIVE)
        assert apart(weights, slots[seed].adapter.weights()) < RELATIVE


def test_the_effects_of_a_bank_of_eight_are_those_of_eight_alone(pair):
    """Different rates, ranks, epochs, batches, schedules and lengths; neighbours end long before others."""
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
    slots = [Slot(bank, rows, loop, seed) for seed, (rows, loop) in enumerate(mix)]
    assert set(run(bank, slots).values()) == {None}
    for seed, (rows, loop) in enumerate(mix):
        assert difference(alone(reference, rows, loop, seed)[1], slots[seed].adapter.weights()) < RELATIVE


def test_a_neighbour_that_is_not_a_number_ends_alone_and_changes_nothing(pair):
    bank, reference = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=4, batch_size=2)
    rows = [row(20, 1), row(9, 2, 2), row(33, 3)]
    good = Slot(bank, rows, loop, 1)
    broken = Slot(bank, rows, loop, 2)
    broken.adapter.values_P.fill_(math.nan)
    ends = run(bank, [broken, good])
    assert ends[good] is None
    assert "diverged" in ends[broken].message
    assert difference(alone(reference, rows, loop, 1)[1], good.adapter.weights()) < RELATIVE


def test_a_slot_over_a_parent_learns_what_peft_learns_over_it(pair, tmp_path):
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


def test_the_exported_adapter_gives_the_same_logits_through_peft(pair, tmp_path):
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


@pytest.mark.parametrize("quantisation", ["none", "nf4", "int8"])
@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_other_families_work_unchanged(family, quantisation, tmp_path):
    """Losses of packed rows equal those of each row alone, and training lowers them."""
    path = str(write_tiny_model(tmp_path / "model", family=family))
    loaded = load_model(path, quantisation=quantisation, device="cpu", compute_dtype="float32", threads=1)
    rows = [row(30, 1), row(12, 2, 3), row(21, 3)]
    with torch.no_grad():
        expected = [loaded.model(torch.tensor([each.ids])).logits[0] for each in rows]
    enable_packing(loaded.model)
    bank = Bank(loaded)
    lengths = [len(each.ids) for each in rows]
    ids_N = torch.tensor([token for each in rows for token in each.ids])
    with torch.no_grad():
        packed = loaded.model(**packed_inputs(ids_N, lengths, bank.device)).logits[0]
    tolerance = 0.05 if quantisation == "int8" else 1e-4
    for part, whole in zip(packed.split(lengths), expected, strict=True):
        assert (part - whole).abs().max() < tolerance
    losses: list[float] = []
    loop = InnerLoopSettings(rank=4, alpha=16, learning_rate=1e-2, epochs=6, batch_size=3)
    slot = Slot(bank, rows, loop, 1, progress=lambda _done, _total, loss: losses.append(loss))
    assert run(bank, [slot])[slot] is None
    assert losses[-1] < losses[0] - 0.01


def test_a_failed_step_leaves_the_slots_as_they_were(pair, monkeypatch):
    bank, reference = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3, batch_size=1)
    rows = [row(20, 1), row(9, 2)]
    slot = Slot(bank, rows, loop, 1)
    forward = bank.loaded.model.get_submodule("model.layers.0").forward

    def broken(*args, **kwargs):
        forward(*args, **kwargs)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(bank.loaded.model.get_submodule("model.layers.0"), "forward", broken)
        with pytest.raises(StepFailed) as failed:
            list(step(bank, [slot], WHOLE))
    assert failed.value.slots == [slot]
    run(bank, [slot])
    assert difference(alone(reference, rows, loop, 1)[1], slot.adapter.weights()) < RELATIVE


def test_unknown_projections_are_named(pair):
    with pytest.raises(InvalidInput, match=r"target_modules.*q_proj"):
        Slot(pair[0], [row(9, 1)], InnerLoopSettings(target_modules=("nope",)), 1)


class Sized:
    """A slot as `passes_of` sees it."""

    def __init__(self, lengths: list[int], first_layer: int) -> None:
        self.batch = [row(length, i) for i, length in enumerate(lengths)]
        self.first_layer = first_layer


sizes = st.builds(Sized, st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(0, 1))


@given(st.lists(sizes, min_size=1, max_size=12), st.integers(1, 600))
def test_passes_hold_every_row_once_in_order_and_keep_to_the_limit(slots, most):
    passes = passes_of(slots, most)
    for slot in slots:
        parts = [part for parts in passes for part in parts if part.slot is slot]
        assert [each for part in parts for each in part.rows] == slot.batch
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    for parts in passes:
        assert sum(part.tokens for part in parts) <= most or sum(len(part.rows) for part in parts) == 1
        assert len({part.slot.first_layer for part in parts}) == 1


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_adapting_the_last_layer_computes_the_lower_ones_once_in_every_family(family, tmp_path):
    path = str(write_tiny_model(tmp_path / "model", family=family))
    loaded, reference = (
        load_model(path, quantisation="none", device="cpu", compute_dtype="float32", threads=1) for _ in range(2)
    )
    enable_packing(loaded.model)
    bank = Bank(loaded)
    rows = [row(30, 1), row(12, 2, 3)]
    loop = InnerLoopSettings(
        rank=4, alpha=16, learning_rate=1e-2, epochs=4, batch_size=1, adapt_last_layers=1, max_grad_norm=0
    )
    lowest = bank.loaded.model.get_decoder().layers[0]
    seen: list[int] = []
    lowest.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[1]))
    losses: list[float] = []
    slot = Slot(bank, rows, loop, 1, progress=lambda _done, _total, loss: losses.append(loss))
    assert run(bank, [slot])[slot] is None
    assert sorted(seen) == [12, 30]
    expected, weights = alone(reference, rows, loop, 1)
    assert losses == pytest.approx(expected, rel=RELATIVE)
    assert apart(weights, slot.adapter.weights()) < RELATIVE
    assert all(".1." in name for name in slot.adapter.weights().modules)


def test_more_layers_than_the_model_has_are_refused(pair):
    with pytest.raises(InvalidInput, match=r"settings.adapt_last_layers.*3.*0 to 2"):
        Slot(pair[0], [row(9, 1)], InnerLoopSettings(adapt_last_layers=3), 1)


def test_a_loop_ends_early_when_its_loss_no_longer_falls(pair):
    """What it did until then is what it would have done anyway."""
    bank, _ = pair
    rows = [row(20, 1), row(9, 2)]

    def losses_with(patience: int) -> list[float]:
        losses: list[float] = []
        loop = InnerLoopSettings(
            rank=2, alpha=4, learning_rate=1e-6, epochs=20, schedule=Schedule.CONSTANT, plateau_epochs=patience
        )
        slot = Slot(bank, rows, loop, 1, progress=lambda _done, _total, loss: losses.append(loss))
        assert run(bank, [slot])[slot] is None
        assert slot.trained().steps == len(losses)
        assert slot.trained().tokens == sum(len(each.ids) for each in rows) * len(losses) // 2
        return losses

    whole, early = losses_with(0), losses_with(3)
    # The first epoch is the best so far; three more do not fall below it by a hundredth.
    assert (len(whole), len(early)) == (40, 8)
    assert early == whole[:8]


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 3))
def test_a_plateau_is_reached_only_after_epochs_without_a_lower_mean(losses, patience, steps):
    plateau = Plateau(patience, steps)
    for loss in losses:
        if plateau.reached:
            break
        plateau.add(loss)
    means = [sum(losses[i : i + steps]) / steps for i in range(0, len(losses) - steps + 1, steps)]
    if plateau.reached:
        assert any(
            all(later >= (1 - PLATEAU) * min(means[: at + 1]) for later in means[at + 1 : at + 1 + patience])
            for at in range(len(means) - patience)
        )
    else:
        falling = Plateau(patience, 1)
        for at in range(30):
            falling.add(0.9**at)
        assert not falling.reached


def test_passes_on_several_cores_learn_what_passes_in_turn_learn(pair):
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


def test_a_pass_that_fails_on_one_core_leaves_the_others_steps(pair):
    shared = pair[0]
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3)
    good, bad = Slot(shared, [row(20, 1)], loop, 1), Slot(shared, [row(9, 2)], loop, 2)
    real = bank_step.backward

    def broken(bank, parts, limits):
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


def test_a_slot_that_cannot_learn_fails_alone(pair, monkeypatch):
    """Such as one whose optimiser finds no memory: who comes after it takes the same step again."""
    bank, reference = pair
    loop = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=3)
    rows = [row(20, 1), row(9, 2)]
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
        assert difference(alone(reference, rows, loop, seed)[1], slot.adapter.weights()) < RELATIVE
