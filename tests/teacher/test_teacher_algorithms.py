"""Each algorithm makes what was rewarded more probable than the rest, in a real update of a tiny model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher.algorithms import BUILT_IN, algorithm_names
from teacher.config import TeacherSettings
from teacher.policies import ADAPTER_FILES, PolicyStore
from teacher.policy_lora import attach_lora, save_lora
from teacher.update_child import learn
from teacher.update_request import lessons_of
from teacher.updates import Updates
from tests.teacher.scored_groups import HASH, learnt, relative_log_prob, request, result_of
from tutelage.models.loading import LoadedModel, load_model

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "rest_em": [{}, {"rule": "best"}, {"rule": "weighted"}, {"rule": "top", "fraction": 0.25}],
    "grpo": [
        {"beta": 0.01},
        {"loss_type": "dr_grpo", "scale_rewards": "none", "length_constant": 6, "beta": 0},
        {"loss_type": "dapo", "epsilon_high": 0.28, "skip_truncated": True, "log_probs": "recomputed"},
        {"importance_sampling_level": "sequence", "loss_type": "luspo", "scale_rewards": "batch"},
        {"loss_type": "bnpo"},
        {"loss_type": "cispo"},
        {"loss_type": "sapo"},
        {"loss_type": "vespo"},
    ],
    "rloo": [{}, {"normalise_advantages": True, "max_reward": 0.5, "log_probs": "recomputed", "beta": 0}],
    "dpo": [{}, {"reference": "initial", "loss_type": "ipo", "beta": 0.05}],
}
CASES = [(name, options) for name, each in OPTIONS.items() for options in each]


def policy_model(settings: TeacherSettings, folder: Path | None) -> Any:
    """A fresh copy of the base under a policy, ready to answer."""
    from peft import PeftModel

    model = load_model(settings.model, quantisation="none", threads=1).model
    return model if folder is None else PeftModel.from_pretrained(model, str(folder)).eval()


def test_every_algorithm_is_tried() -> None:
    assert set(OPTIONS) == set(BUILT_IN)
    assert algorithm_names()[: len(BUILT_IN)] == tuple(BUILT_IN)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_what_was_rewarded_becomes_more_probable(
    name: str, options: dict[str, Any], settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path
) -> None:
    asked = request(loaded.model, "p", name, options)
    lessons = lessons_of(asked, HASH, {"p": 0})
    kept = 4 if options.get("rule") == "weighted" else 2
    assert lessons.kept == {"rest_em": kept, "dpo": 4}.get(name, 6 if options.get("skip_truncated") else 8)
    assert (lessons.unscored, lessons.stale, lessons.passed_over) == (2, 0, 8 - lessons.kept)
    rewards: dict[str, Any] = {item.candidate_id: item.reward for group in asked.groups for item in group.candidates}
    raised = {rewards[name] for name, weight in lessons.weights.items() if weight > 0}
    lowered = {rewards[name] for name, weight in lessons.weights.items() if weight < 0}
    assert raised
    assert bool(lowered) is (name != "rest_em")
    assert all(up > down for up in raised for down in lowered)
    assert relative_log_prob(learnt(settings, asked, tmp_path)) > relative_log_prob(loaded.model) + 0.02


@pytest.mark.parametrize("name", ["grpo", "dpo"])
def test_update_in_its_own_process(
    name: str, settings: TeacherSettings, store: PolicyStore, loaded: LoadedModel
) -> None:
    updates = Updates(settings, store, HASH)
    asked = request(loaded.model, store.initial.version, name, OPTIONS[name][0])
    first = result_of(updates, asked)
    assert first.updated
    assert first.policy.algorithm == name
    assert (first.unscored_candidates, first.stale_candidates) == (2, 0)
    assert 2**26 < first.peak_memory_bytes < 2**34
    model = policy_model(settings, store.adapter_folder(first.policy.version))
    assert relative_log_prob(model) > relative_log_prob(loaded.model) + 0.02
    # Nothing of a trainer's reference is stored with the policy.
    assert set((settings.data_dir / "policies" / first.policy.version).iterdir()) == {
        settings.data_dir / "policies" / first.policy.version / file for file in (*ADAPTER_FILES, "manifest.json")
    }
    # The same content updates once, whatever the order it comes in.
    turned = dataclasses.replace(asked, groups=asked.groups[::-1])
    assert list(updates.update(turned)) == [first]


@pytest.mark.parametrize("name", ["grpo", "rloo", "dpo"])
def test_continues_a_trained_parent(name: str, settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path) -> None:
    parent = learnt(settings, request(loaded.model, "p", "rest_em", {}), tmp_path / "first")
    save_lora(parent, tmp_path / "parent", "tiny", 1e-3)
    before = relative_log_prob(parent)
    options = {"beta": 0.05} if name != "dpo" else {"reference": "initial"}
    model = policy_model(settings, tmp_path / "parent")
    assert relative_log_prob(model) == pytest.approx(before, abs=1e-5)
    asked = request(model, "p", name, options)
    assert relative_log_prob(learnt(settings, asked, tmp_path, tmp_path / "parent")) > before


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_what_a_parent_has_learnt_is_not_rounded_on_a_quantised_base(
    name: str, settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path
) -> None:
    def nf4() -> LoadedModel:
        kept: dict[str, Any] = {"quantisation": "nf4", "dequantise": "each-pass", "device": "cpu", "threads": 1}
        return load_model(settings.model, compute_dtype="float32", **kept)

    asked = request(loaded.model, "p", name, {})
    still = dataclasses.replace(asked.settings, learning_rate=1e-12, epochs=1)
    parent = attach_lora(nf4().model, still, None)
    for parameter in lora_of(parent).values():
        torch.nn.init.normal_(parameter, std=0.02)
    save_lora(parent, tmp_path / "parent", "tiny", 1e-3)
    groups = lessons_of(asked, HASH, {"p": 0}).groups
    made = learn(nf4(), name, still, groups, 1, tmp_path, lambda *step: None, parent=tmp_path / "parent")
    before, after = lora_of(parent), lora_of(made)
    assert before.keys() == after.keys()
    assert max(float((after[each] - before[each]).abs().max()) for each in before) < 1e-8


def lora_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: each.data for name, each in model.named_parameters() if each.requires_grad}


def test_kl_holds_the_policy_to_the_first(settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path) -> None:
    start = relative_log_prob(loaded.model)
    moved = [
        abs(relative_log_prob(learnt(settings, request(loaded.model, "p", "grpo", {"beta": beta}), tmp_path)) - start)
        for beta in (0.0, 20.0)
    ]
    assert moved[1] < 0.5 * moved[0]
