"""LoRA arithmetic, adapter versions on disk, and gradients that stay right after a quiz."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel

from student.adapted import adapted
from student.adapters import AdapterStore
from student.inner_loop import Row, learning_rate_at, micro_batches, of_similar_length, summed_loss, train
from student.lora import LoraWeights, concatenate, recompress
from student.quiz import take_quiz
from tutelage.domain.errors import DataLoss, NotFound, PreconditionFailed
from tutelage.domain.evaluation import InnerLoopSettings
from tutelage.domain.self_edit import Schedule
from tutelage.domain.task import Question
from tutelage.models.loading import load_model

ROWS = [Row(tuple(range(5, 25)), tuple(range(5, 25))), Row(tuple(range(9, 16)), (-100, -100, *range(11, 16)))]
SETTINGS = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=4, batch_size=2)
IDS = torch.arange(5, 30)[None]
LINEAGE = {"parent": "", "evaluation_id": "e" * 64, "base_model": "tiny"}


def trained(tiny, seed, parent=None, settings=SETTINGS):
    with adapted(tiny, parent=parent, fresh=settings, seed=seed) as model:
        train(model, ROWS, settings, seed, stop=threading.Event())
        with torch.no_grad():
            return model.fresh_weights(), model.model(IDS).logits


def logits(tiny, weights):
    with adapted(tiny, parent=weights) as model, torch.no_grad():
        return model.model(IDS).logits


def test_the_concatenation_answers_like_parent_and_fresh_and_peft_loads_it(tiny, tiny_path, tmp_path):
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


def test_recompression_is_the_nearest_of_its_rank():
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


def test_versions_are_named_by_content(tiny, tmp_path):
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
    (tmp_path / adapter.version / "manifest.json").write_text("{")
    with pytest.raises(DataLoss):
        store.get(adapter.version)
    assert store.list() == ()
    store.delete(adapter.version)
    with pytest.raises(NotFound):
        store.delete(adapter.version)


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_gradients_are_right_after_a_quiz(tiny_path, quantisation):
    """A forward pass in eval mode must not change the backward pass that follows it."""

    def gradients(quiz_first: bool) -> list[torch.Tensor]:
        loaded = load_model(str(tiny_path), quantisation=quantisation, device="cpu", compute_dtype="float32")
        if quiz_first:
            ask = [Question("q", "Who?", "me")]
            take_quiz(
                loaded,
                loaded.model,
                ask,
                ("exact", "loglik"),
                max_new_tokens=4,
                batch_size=2,
                stop=threading.Event(),
            )
        with adapted(loaded, fresh=SETTINGS, seed=3) as model:
            summed_loss(model.model, ROWS, torch.device("cpu")).backward()
            return [parameter.grad for parameter in model.trainable()]

    for before, after in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(before, after)
    assert any(gradient.abs().sum() > 0 for gradient in gradients(True))


def test_pads_carry_no_loss(tiny):
    one, two = (summed_loss(tiny.model, [row], torch.device("cpu")) for row in ROWS)
    both = summed_loss(tiny.model, ROWS, torch.device("cpu"))
    assert [row.supervised for row in ROWS] == [19, 5]
    assert float(both) == pytest.approx(float(one + two), rel=1e-6)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_parts_hold_every_row_once_with_little_padding(lengths):
    rows = [Row((1,) * length, (1,) * length) for length in lengths]
    parts = of_similar_length(rows)
    assert sorted(len(row.ids) for part in parts for row in part) == sorted(lengths)
    padded = sum(len(part[0].ids) * len(part) for part in parts)
    assert padded - sum(lengths) <= len(parts) * 96 * len(lengths)
    if max(lengths) - min(lengths) <= 96 // len(lengths):
        assert len(parts) == 1


def test_one_long_row_does_not_pad_the_short_ones():
    rows = [Row((1,) * length, (1,) * length) for length in (20, 250, 25, 22)]
    assert [[len(row.ids) for row in part] for part in of_similar_length(rows)] == [[250], [25, 22, 20]]


def test_a_batch_answers_as_each_question_alone(tiny):
    asked = [Question(str(i), "Who " * (1 + 3 * i), "me" * (i + 1)) for i in range(4)]
    graders = ("exact", "loglik")

    def take(questions, size):
        return take_quiz(
            tiny, tiny.model, questions, graders, max_new_tokens=6, batch_size=size, stop=threading.Event()
        )

    together = take(asked, 4)
    for question, answer in zip(asked, together, strict=True):
        (alone,) = take([question], 1)
        assert alone.text == answer.text
        assert alone.scores["loglik"] == pytest.approx(answer.scores["loglik"], abs=1e-5)


def test_schedules_and_order():
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
