"""LoRA arithmetic, adapter versions on disk, and gradients that stay right after a quiz."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from benchmarks.peft_loop import fresh_parameters, fresh_weights, peft_adapted, row_loss, train_alone
from student.adapters import AdapterStore
from student.bank import Bank
from student.bank_step import Limits, Part, backward
from student.inner_loop import Row, learning_rate_at, micro_batches
from student.lora import LoraWeights, concatenate, recompress
from student.packing import enable_packing
from student.quiz import Sitting
from student.quiz_room import take_quizzes
from student.slot import Slot
from tutelage.domain.errors import DataLoss, NotFound, PreconditionFailed
from tutelage.domain.evaluation import Answer, InnerLoopSettings
from tutelage.domain.self_edit import Schedule
from tutelage.domain.task import Question
from tutelage.models.loading import LoadedModel, Quantisation, load_model
from tutelage.models.tiny import write_tiny_model

LOOP = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=1, batch_size=2)
ROWS = [Row(tuple(range(5, 25)), tuple(range(5, 25))), Row(tuple(range(9, 16)), (-100, -100, *range(11, 16)))]
SETTINGS = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=4, batch_size=2)
IDS = torch.arange(5, 30)[None]
LINEAGE = {"parent": "", "evaluation_id": "e" * 64, "base_model": "tiny"}


@pytest.fixture(scope="module")
def bank(tiny_path: Path) -> Bank:
    loaded = load_model(str(tiny_path), quantisation="none", device="cpu", compute_dtype="float32", threads=1)
    enable_packing(loaded.model)
    return Bank(loaded)


def trained(
    tiny: LoadedModel, seed: int, parent: LoraWeights | None = None, settings: InnerLoopSettings = SETTINGS
) -> tuple[LoraWeights, torch.Tensor]:
    with peft_adapted(tiny, parent=parent, fresh=settings, seed=seed) as model:
        train_alone(model, ROWS, settings, seed)
        with torch.no_grad():
            return fresh_weights(model), model(IDS).logits


def logits(tiny: LoadedModel, weights: LoraWeights) -> torch.Tensor:
    with peft_adapted(tiny, parent=weights) as model, torch.no_grad():
        found: torch.Tensor = model(IDS).logits
        return found


def test_the_concatenation_answers_like_parent_and_fresh_and_peft_loads_it(
    tiny: LoadedModel, tiny_path: Path, tmp_path: Path
) -> None:
    parent, _ = trained(tiny, 1)
    narrow = InnerLoopSettings(**{**vars(SETTINGS), "rank": 3, "target_modules": ("q_proj", "v_proj")})
    fresh, together = trained(tiny, 2, parent, narrow)
    whole = concatenate(parent, fresh)
    assert whole.rank == 7
    assert (logits(tiny, whole) - together).abs().max() < 1e-5
    assert (logits(tiny, parent) - together).abs().max() > 1e-3
    store = AdapterStore(tmp_path)
    adapter = store.save(whole, base_revision=tiny.revision, **LINEAGE)
    base = load_model(str(tiny_path), quantisation="none", device="cpu", compute_dtype="float32")
    by_peft = PeftModel.from_pretrained(base.model, str(tmp_path / adapter.version))
    with torch.no_grad():
        assert (by_peft(IDS).logits - together).abs().max() < 1e-5


def test_recompression_is_the_nearest_of_its_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(12, 20, generator=generator), torch.randn(30, 12, generator=generator)
    small = recompress(LoraWeights({"layer": (a, b)}), 5)
    assert small.rank == 5
    new_a, new_b = small.modules["layer"]
    u, s, vh = torch.linalg.svd(b @ a)
    assert torch.allclose(new_b @ new_a, u[:, :5] * s[:5] @ vh[:5], atol=1e-3)
    exact = recompress(LoraWeights({"layer": (torch.cat([a, a]), torch.cat([b, b], 1))}), 12)
    assert torch.allclose(exact.modules["layer"][1] @ exact.modules["layer"][0], 2 * b @ a, atol=1e-3)
    assert recompress(small, 5) is small


def test_versions_are_named_by_content(tiny: LoadedModel, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    weights, _ = trained(tiny, 1)
    adapter = store.save(weights, base_revision="r", **LINEAGE)
    assert store.save(weights, base_revision="r", **LINEAGE) == adapter
    assert AdapterStore(tmp_path).list() == (adapter,)
    again = store.load(adapter.version, "r")
    assert all(torch.equal(again.modules[n][0], a) for n, (a, _) in weights.modules.items())
    with pytest.raises(PreconditionFailed, match="base revision"):
        store.load(adapter.version, "other")
    file = tmp_path / adapter.version / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataLoss):
        store.load(adapter.version, "r")
    for damaged in ("{", "[]", "{}", '{"sha256": {}, "base_revision": "r"}', '{"sha256": [], "base_revision": "r"}'):
        (tmp_path / adapter.version / "manifest.json").write_text(damaged)
        with pytest.raises(DataLoss, match="manifest"):
            store.get(adapter.version)
        with pytest.raises(DataLoss, match="manifest"):
            store.load(adapter.version, "r")
        assert store.list() == ()
    store.delete(adapter.version)
    with pytest.raises(NotFound):
        store.delete(adapter.version)


def test_what_dies_while_it_deletes_a_version_leaves_nothing_after_the_next_start(
    tiny: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(tmp_path)
    kept, deleted = (store.save(trained(tiny, seed)[0], base_revision="r", **LINEAGE) for seed in (1, 2))

    def killed(*args: Any, **named: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            store.delete(deleted.version)
    assert store.list() == (kept,)
    again = AdapterStore(tmp_path)
    assert again.list() == (kept,)
    assert [folder.name for folder in tmp_path.iterdir()] == [kept.version]
    with pytest.raises(NotFound):
        again.delete(deleted.version)
    assert again.save(trained(tiny, 2)[0], base_revision="r", **LINEAGE).version == deleted.version


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_gradients_are_right_after_a_quiz(tiny_path: Path, quantisation: Quantisation) -> None:
    """A forward pass in eval mode must not change the backward pass that follows it."""

    def reference() -> list[torch.Tensor]:
        loaded = load_model(str(tiny_path), quantisation=quantisation, device="cpu", compute_dtype="float32")
        with peft_adapted(loaded, fresh=LOOP, seed=3) as model:
            for row in ROWS:
                (row_loss(model, row) / sum(row.supervised for row in ROWS)).backward()
            return [grad for parameter in fresh_parameters(model) if (grad := parameter.grad) is not None]

    def gradients(quiz_first: bool) -> list[torch.Tensor]:
        loaded = load_model(str(tiny_path), quantisation=quantisation, device="cpu", compute_dtype="float32")
        bank = Bank(loaded)
        enable_packing(loaded.model)
        if quiz_first:
            asked = Sitting((Question("q", "Who?", "me"),), ("exact", "loglik"))
            take_quizzes(bank, [asked], max_new_tokens=4, batch_size=2)
        slot = Slot(bank, ROWS, LOOP, 3)
        backward(bank, [Part(slot, tuple(slot.batch), last=True)], Limits(4096))
        assert slot.adapter.grad_P is not None
        slot.adapter.values_P.copy_(slot.adapter.grad_P)
        return [gradient for da_RI, db_RO in slot.adapter.factors().values() for gradient in (da_RI, db_RO.T)]

    for before, after, expected in zip(gradients(False), gradients(True), reference(), strict=True):
        assert torch.equal(before, after)
        assert torch.allclose(after, expected, rtol=1e-4, atol=1e-7)
    assert any(gradient.abs().sum() > 0 for gradient in gradients(True))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """On a model some of whose layers see a window that is shorter than the prompts."""
    path = write_tiny_model(tmp_path_factory.mktemp("windowed") / "model", family="gemma3")
    loaded = load_model(str(path), quantisation="none", device="cpu", compute_dtype="float32", threads=1)
    enable_packing(loaded.model)
    return Bank(loaded)


def answers_of(bank: Bank, sittings: list[Sitting], batch_size: int) -> list[tuple[Answer, ...]]:
    given = take_quizzes(bank, sittings, max_new_tokens=6, batch_size=batch_size)
    answers = [each for each in given if not isinstance(each, ArithmeticError)]
    assert len(answers) == len(sittings)
    return answers


@pytest.mark.parametrize("kind", ["bank", "windowed"])
def test_a_room_of_sittings_answers_as_each_question_alone(kind: str, request: pytest.FixtureRequest) -> None:
    """Mixed adapters, mixed lengths, a shared beginning, rows that end early: none changes an answer."""
    bank = request.getfixturevalue(kind)
    adapters = [(), (Slot(bank, ROWS, LOOP, 1).adapter,), (Slot(bank, ROWS, LOOP, 2).adapter,)]
    for i, own in enumerate(adapters[1:]):
        own[0].values_P.normal_(0, 0.3, generator=torch.Generator().manual_seed(i))
    questions = tuple(Question(str(i), "Who " * (1 + 3 * i), "me" * (i + 1)) for i in range(4))
    sittings = [Sitting(questions, ("exact", "loglik"), own) for own in adapters]
    together = answers_of(bank, sittings, 5)
    for own, answers in zip(adapters, together, strict=True):
        for question, answer in zip(questions, answers, strict=True):
            ((alone,),) = answers_of(bank, [Sitting((question,), ("exact", "loglik"), own)], 1)
            assert alone.text == answer.text
            assert alone.scores["loglik"] == pytest.approx(answer.scores["loglik"], abs=1e-4)
    # By far more than an answer may differ from the one alone, so that no adapter could stand for another.
    for one, other in itertools.combinations(together, 2):
        for mine, theirs in zip(one, other, strict=True):
            assert mine.text != theirs.text
            assert abs(mine.scores["loglik"] - theirs.scores["loglik"]) > 1e-3


def test_a_likelihood_that_is_no_number_is_the_error_of_its_sitting_alone(bank: Bank) -> None:
    broken = Slot(bank, ROWS, LOOP, 1).adapter
    broken.values_P.fill_(torch.nan)
    sittings = [Sitting((Question("q", "Who?", "me"),), ("loglik",), own) for own in ((), (broken,))]
    good, bad = take_quizzes(bank, sittings, max_new_tokens=2, batch_size=8)
    assert isinstance(bad, ArithmeticError)
    assert not isinstance(good, ArithmeticError)
    assert good[0].scores["loglik"] < 0


def test_schedules_and_order() -> None:
    rates = {
        schedule: [
            learning_rate_at(step, 4, InnerLoopSettings(learning_rate=1.0, schedule=schedule)) for step in range(4)
        ]
        for schedule in Schedule
    }
    assert rates[Schedule.CONSTANT] == [1, 1, 1, 1]
    assert rates[Schedule.LINEAR] == [1, 0.75, 0.5, 0.25]
    assert rates[Schedule.COSINE] == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-5)
    rows = [Row((i,), (i,)) for i in range(5)]
    batches = micro_batches(rows, SETTINGS, 0)
    assert [len(batch) for batch in batches] == [2, 2, 1] * 4
    assert micro_batches(rows, SETTINGS, 0) == batches != micro_batches(rows, SETTINGS, 1)
