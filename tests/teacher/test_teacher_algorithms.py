"""Each algorithm makes what was rewarded more probable than the rest, in a real update of a tiny model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher.algorithms import BUILT_IN, algorithm_names
from teacher.config import TeacherSettings
from teacher.policies import ADAPTER_FILES, PolicyStore
from teacher.policy_lora import save_lora
from teacher.sampling import Sampled, sample_completions
from teacher.update_child import learn, read_groups, write_groups
from teacher.update_request import lessons_of
from teacher.updates import Updates
from tutelage.domain.description import UpdateProgress
from tutelage.domain.errors import InvalidInput, Unavailable
from tutelage.domain.policy import (
    CandidateGroup,
    Sampling,
    ScoredCandidate,
    StaleCandidates,
    UpdateRequest,
    UpdateResult,
    UpdateSettings,
)
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.v1 import policy_pb2

HASH = "h" * 64
END = 2
PROMPTS = ([5, 6, 7, 8], [9, 10, 11, 12, 13, 14])
COMPLETIONS = ([20, 21, 22, 23, END], [30, 31, 32, END], [40, 41, 42, 43, 44, 45], [50, END])
"""Of each prompt; the first is rewarded, the third was cut off."""
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


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TeacherSettings:
    folder = tmp_path_factory.mktemp("algorithms")
    model = str(write_tiny_model(folder / "model"))
    return TeacherSettings(model=model, device="cpu", threads=1, data_dir=folder / "data", quantisation="none")


@pytest.fixture(scope="module")
def loaded(settings: TeacherSettings) -> LoadedModel:
    return load_model(settings.model, quantisation="none", threads=1)


@pytest.fixture(scope="module")
def store(settings: TeacherSettings, loaded: LoadedModel) -> PolicyStore:
    return PolicyStore(settings.data_dir / "policies", loaded.revision)


def token_log_probs(model: Any, prompt: list[int], completion: list[int]) -> list[float]:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits.float()[0]
    places = torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return [float(value) for value in torch.log_softmax(logits, -1)[places, torch.tensor(completion)]]


def relative_log_prob(model: Any) -> float:
    """Mean over prompts of the rewarded completion's log-probability a token, less the mean of the others'."""
    found = []
    for prompt in PROMPTS:
        means = [sum(each) / len(each) for each in (token_log_probs(model, prompt, c) for c in COMPLETIONS)]
        found.append(means[0] - sum(means[1:]) / (len(means) - 1))
    return sum(found) / len(found)


def policy_model(settings: TeacherSettings, folder: Path | None) -> Any:
    """A fresh copy of the base under a policy, ready to answer."""
    from peft import PeftModel

    model = load_model(settings.model, quantisation="none", threads=1).model
    return model if folder is None else PeftModel.from_pretrained(model, str(folder)).eval()


def rollout(model: Any, version: str, prompt: list[int], completion: list[int], **more: Any) -> bytes:
    message = policy_pb2.Rollout(
        policy_version=version,
        prompt_ids=prompt,
        completion_ids=completion,
        log_probs=token_log_probs(model, prompt, completion),
        tokenizer_hash=HASH,
        ended=completion[-1] == END,
        forced=[False, True] + [False] * (len(completion) - 2) if completion[0] == 30 else [],
        **more,
    )
    return message.SerializeToString()


def request(model: Any, parent: str, name: str, options: Mapping[str, Any], written_by: str = "") -> UpdateRequest:
    groups = []
    for p, prompt in enumerate(PROMPTS):
        scored = tuple(
            ScoredCandidate(
                f"{p}-{c}", rollout(model, written_by or parent, prompt, completion), (1.0, 0.1, 0.0, -0.2)[c]
            )
            for c, completion in enumerate(COMPLETIONS)
        )
        unscored = ScoredCandidate(f"{p}-x", rollout(model, written_by or parent, prompt, [60, END]), None)
        groups.append(CandidateGroup(f"g{p}", (*scored, unscored)))
    settings = UpdateSettings(
        rank=4, alpha=8.0, learning_rate=1e-2, epochs=6, batch_size=4, options=dict(options), max_staleness=0
    )
    return UpdateRequest(parent, name, settings, tuple(groups), 7, "run", 1)


def result_of(updates: Updates, asked: UpdateRequest) -> UpdateResult:
    *_, result = updates.update(asked)
    assert isinstance(result, UpdateResult)
    return result


def learnt(settings: TeacherSettings, asked: UpdateRequest, folder: Path, parent: Path | None = None) -> Any:
    """The model after the algorithm's training in this process, on what it selects."""
    ages = {asked.parent_version: 0}
    lessons = lessons_of(asked, HASH, ages)
    steps: list[int] = []
    fresh = load_model(settings.model, quantisation="none", threads=1)
    model = learn(
        fresh,
        asked.algorithm,
        asked.settings,
        lessons.groups,
        asked.seed,
        folder,
        lambda done, total, loss: steps.append(done),
        parent=parent,
    )
    assert steps
    assert steps[-1] == max(steps)
    return model.eval()


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
    rewards = {item.candidate_id: item.reward for group in asked.groups for item in group.candidates}
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
    save_lora(parent, tmp_path / "parent", "tiny")
    before = relative_log_prob(parent)
    options = {"beta": 0.05} if name != "dpo" else {"reference": "initial"}
    model = policy_model(settings, tmp_path / "parent")
    assert relative_log_prob(model) == pytest.approx(before, abs=1e-5)
    asked = request(model, "p", name, options)
    assert relative_log_prob(learnt(settings, asked, tmp_path, tmp_path / "parent")) > before


def test_kl_holds_the_policy_to_the_first(settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path) -> None:
    start = relative_log_prob(loaded.model)
    moved = [
        abs(relative_log_prob(learnt(settings, request(loaded.model, "p", "grpo", {"beta": beta}), tmp_path)) - start)
        for beta in (0.0, 20.0)
    ]
    assert moved[1] < 0.5 * moved[0]


def test_stale_candidates_are_dropped_and_counted_or_weighted(loaded: LoadedModel) -> None:
    ages = {"parent": 0, "older": 1}
    asked = request(loaded.model, "parent", "grpo", {}, written_by="older")
    dropped = lessons_of(asked, HASH, ages)
    assert (dropped.kept, dropped.stale, dropped.unscored) == (0, 8, 2)
    assert "stale" in dropped.message
    weighted = dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, stale=StaleCandidates.WEIGHT))
    assert (lessons_of(weighted, HASH, ages).kept, lessons_of(weighted, HASH, ages).stale) == (8, 0)
    bounded = dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, max_staleness=1))
    assert lessons_of(bounded, HASH, ages).kept == 8
    # A policy that is not the parent's ancestor is stale however young.
    foreign = request(loaded.model, "parent", "rest_em", {}, written_by="elsewhere")
    assert lessons_of(foreign, HASH, ages).stale == 8


def learnt_from_shifted(
    settings: TeacherSettings, base: Any, options: dict[str, Any], folder: Path, *, good: float, bad: float
) -> Any:
    """The model after one pass over candidates whose recorded log-probabilities were other than they are now."""
    asked = request(base, "p", "grpo", {"beta": 0, **options})
    old = tuple(
        dataclasses.replace(
            group,
            samples=tuple(
                dataclasses.replace(s, log_probs=tuple(v + (good if s.reward > 0.5 else bad) for v in s.log_probs))
                for s in group.samples
            ),
        )
        for group in lessons_of(asked, HASH, {"p": 0}).groups
    )
    return learn(
        load_model(settings.model, quantisation="none", threads=1),
        "grpo",
        dataclasses.replace(asked.settings, epochs=1),
        old,
        1,
        folder,
        lambda done, total, loss: None,
    ).eval()


def test_the_loss_weighs_by_recorded_log_probs(settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path) -> None:
    """A candidate that is far more probable now than when it was sampled is beyond the clip: it teaches nothing."""
    # Good ones were rarer then, bad ones more frequent: both have moved enough.
    options = {"loss_type": "dr_grpo"}
    model = learnt_from_shifted(settings, loaded.model, options, tmp_path, good=-3, bad=3)
    assert relative_log_prob(model) == pytest.approx(relative_log_prob(loaded.model), abs=1e-4)


def test_cispo_weighs_by_recorded_log_probs_as_well(
    settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path
) -> None:
    """It bounds the ratio itself: one below its bound counts as it is."""
    even, rarer = (
        learnt_from_shifted(settings, loaded.model, {"loss_type": "cispo"}, tmp_path / f"{good}", good=good, bad=0)
        for good in (0.0, -1.0)
    )
    assert abs(relative_log_prob(rarer) - relative_log_prob(even)) > 1e-3


LEARNERS: list[tuple[str, dict[str, Any]]] = [("grpo", {"beta": 0}), ("rloo", {"beta": 0}), ("rest_em", {})]


@pytest.mark.parametrize(("name", "options"), LEARNERS)
def test_what_is_not_of_the_part_teaches_nothing(
    name: str, options: dict[str, Any], settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path
) -> None:
    """These candidates have one line alone, and no notes."""
    asked = request(loaded.model, "p", name, {**options, "part": "notes"})
    groups = tuple(
        dataclasses.replace(
            group,
            samples=tuple(
                dataclasses.replace(s, forced=(True,) + (False,) * (len(s.completion_ids) - 1)) for s in group.samples
            ),
        )
        for group in lessons_of(asked, HASH, {"p": 0}).groups
    )
    fresh = load_model(settings.model, quantisation="none", threads=1)
    model = learn(fresh, name, asked.settings, groups, 1, tmp_path, lambda done, total, loss: None).eval()
    assert relative_log_prob(model) == pytest.approx(relative_log_prob(loaded.model), abs=1e-5)


@pytest.mark.parametrize(("name", "options"), LEARNERS)
def test_what_a_form_forced_teaches_nothing(
    name: str, options: dict[str, Any], settings: TeacherSettings, loaded: LoadedModel, tmp_path: Path
) -> None:
    asked = request(loaded.model, "p", name, options)
    groups = tuple(
        dataclasses.replace(
            group, samples=tuple(dataclasses.replace(s, forced=(True,) * len(s.completion_ids)) for s in group.samples)
        )
        for group in lessons_of(asked, HASH, {"p": 0}).groups
    )
    fresh = load_model(settings.model, quantisation="none", threads=1)
    model = learn(fresh, name, asked.settings, groups, 1, tmp_path, lambda done, total, loss: None).eval()
    assert relative_log_prob(model) == pytest.approx(relative_log_prob(loaded.model), abs=1e-5)


def test_sampling_tells_what_was_forced(loaded: LoadedModel) -> None:
    class Begins:
        """The first two tokens are given, then there is a choice of two, then all is free."""

        steps = 0

        def allowed(self, row: int, log_probs_V: torch.Tensor) -> torch.Tensor:
            if self.steps >= 3:
                return log_probs_V
            kept = [[70], [71], [72, 73]][self.steps]
            masked_V = torch.full_like(log_probs_V, float("-inf"))
            masked_V[kept] = log_probs_V[kept]
            return masked_V

        def take(self, row: int, token: int) -> None:
            self.steps += 1

    def sampled(form: Begins | None) -> Sampled:
        return next(sample_completions(loaded.model, [5, 6], [1], Sampling(1.0, 1.0, 5), frozenset(), form=form))

    held = sampled(Begins())
    assert held.ids[:2] == (70, 71)
    assert held.ids[2] in (72, 73)
    assert held.forced == (True, True, False, False, False)
    assert sampled(None).forced == ()


def test_the_head_sees_labelled_positions_only(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU scores what carries loss, and gets what scoring every position gives."""
    import trl.trainer.utils as trl_utils

    import teacher.trl_training  # noqa: F401

    seen: list[int] = []
    inner = trl_utils._ChunkedLogProbFunction.apply

    def counted(hidden: torch.Tensor, *rest: Any) -> Any:
        seen.append(hidden.shape[0])
        return inner(hidden, *rest)

    monkeypatch.setattr(trl_utils._ChunkedLogProbFunction, "apply", counted)
    model = load_model(loaded.name, quantisation="none", threads=1).model
    trl_utils.add_fused_lm_head(model)
    ids = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
    labels = ids.clone()
    labels[:, : len(PROMPTS[0])] = -100
    found = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs[0, -len(COMPLETIONS[0]) :]
    assert seen == [len(COMPLETIONS[0])]
    assert found.tolist() == pytest.approx(token_log_probs(loaded.model, PROMPTS[0], COMPLETIONS[0]), abs=1e-4)


def test_groups_survive_their_file(loaded: LoadedModel, tmp_path: Path) -> None:
    groups = lessons_of(request(loaded.model, "p", "rloo", {}), HASH, {"p": 0}).groups
    write_groups(groups, tmp_path / "groups.safetensors")
    assert read_groups(tmp_path / "groups.safetensors") == groups


def test_nothing_to_learn_where_rewards_do_not_differ(
    settings: TeacherSettings, store: PolicyStore, loaded: LoadedModel
) -> None:
    updates = Updates(settings, store, HASH)
    for name, option in (("grpo", "min_spread"), ("rloo", "min_spread"), ("dpo", "min_gap")):
        result = result_of(updates, request(loaded.model, store.initial.version, name, {option: 1.2}))
        assert not result.updated
        assert result.policy == store.initial
        assert "1.2" in result.message


def test_refusals(settings: TeacherSettings, store: PolicyStore, loaded: LoadedModel) -> None:
    updates = Updates(settings, store, HASH)
    version = store.initial.version

    def refused(name: str, options: dict[str, Any], **more: Any) -> str:
        asked = request(loaded.model, version, name, options)
        asked = dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, **more))
        with pytest.raises(InvalidInput) as caught:
            list(updates.update(asked))
        return str(caught.value)

    assert "settings.options.beta: '-1.0'" in refused("grpo", {"beta": -1})
    assert "'dr_grpo'" in refused("grpo", {"loss_type": "ppo"})
    assert "one of the keys anchor, beta, delta" in refused("grpo", {"bta": 1})
    assert "importance_sampling_level: sequence" in refused("grpo", {"loss_type": "luspo"})
    assert "epsilon_high: 1 or more" in refused("grpo", {"loss_type": "cispo", "epsilon_high": 0.28})
    assert "settings.options.label_smoothing" in refused("dpo", {"label_smoothing": 0.9})
    assert "settings.stale" in refused("rest_em", {}, stale=StaleCandidates.WEIGHT)
    assert "one of rest_em, grpo, rloo, dpo" in refused("ppo", {})
    both = refused("rloo", {"log_probs": "recomputed"}, stale=StaleCandidates.WEIGHT)
    assert "settings.options.log_probs: 'recomputed'" in both

    def sampled(*with_what: dict[str, float]) -> None:
        items = [
            ScoredCandidate(f"{c}", rollout(loaded.model, version, [5], [6], **more), float(c))
            for c, more in enumerate(with_what)
        ]
        asked = dataclasses.replace(
            request(loaded.model, version, "rloo", {}), groups=(CandidateGroup("g", tuple(items)),)
        )
        list(updates.update(asked))

    for more, field in ({"temperature": 0.0}, "temperature"), ({"top_p": 0.9}, "top_p"):
        with pytest.raises(InvalidInput, match=rf"groups\[0\].candidates\[0\].rollout.{field}.*rloo"):
            sampled(more)
    with pytest.raises(InvalidInput, match=r"groups\[0\].candidates\[1\].rollout.temperature: '0.7'.*0.6, as"):
        sampled({"temperature": 0.6}, {"temperature": 0.7})
    bare = policy_pb2.Rollout(policy_version=version, prompt_ids=[5], completion_ids=[6], tokenizer_hash=HASH)
    group = CandidateGroup("g", (ScoredCandidate("a", bare.SerializeToString(), 1.0),))
    with pytest.raises(InvalidInput, match=r"log_probs.*0 of them"):
        list(updates.update(dataclasses.replace(request(loaded.model, version, "grpo", {}), groups=(group,))))


def test_killed_update_leaves_the_old_version_in_force(
    settings: TeacherSettings, store: PolicyStore, loaded: LoadedModel
) -> None:
    updates = Updates(settings, store, HASH)
    before = store.list()
    asked = request(loaded.model, store.initial.version, "grpo", {})
    long = dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, epochs=100_000))

    def killed_in_the_middle() -> None:
        for event in updates.update(long):
            if isinstance(event, UpdateProgress) and event.steps_done:
                child = updates._child
                assert child is not None
                child.kill()

    with pytest.raises(Unavailable, match="signal 9"):
        killed_in_the_middle()
    assert store.list() == before
    assert not list((settings.data_dir / "updates").glob("*/work"))
    # Asked for again in a shorter form, the teacher goes on as if nothing had been.
    assert result_of(updates, asked).updated
