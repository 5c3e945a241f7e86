"""Fewer layers and fewer epochs: what is left out changes nothing of what is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from student.bank import Bank
from student.inner_loop import PLATEAU, Plateau
from student.packing import enable_packing
from student.slot import Slot
from tests.student.bank_cases import RELATIVE, alone, apart, row, run
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.self_edit import Schedule
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import TINY_FAMILIES, write_tiny_model


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_adapting_the_last_layer_computes_the_lower_ones_once_in_every_family(family: str, tmp_path: Path) -> None:
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


def test_more_layers_than_the_model_has_are_refused(pair: tuple[Bank, LoadedModel]) -> None:
    with pytest.raises(InvalidInput, match=r"settings.adapt_last_layers.*3.*0 to 2"):
        Slot(pair[0], [row(9, 1)], InnerLoopSettings(adapt_last_layers=3), 1)


def test_a_loop_ends_early_when_its_loss_no_longer_falls(pair: tuple[Bank, LoadedModel]) -> None:
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
def test_a_plateau_is_reached_only_after_epochs_without_a_lower_mean(
    losses: list[float], patience: int, steps: int
) -> None:
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
