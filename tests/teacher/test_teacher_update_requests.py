"""The request of an update: what of it is learnt from, what is refused, and what a killed one leaves behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from teacher.config import TeacherSettings
from teacher.policies import PolicyStore
from teacher.update_child import read_groups, write_groups
from teacher.update_request import lessons_of
from teacher.updates import Updates
from tests.teacher.scored_groups import HASH, request, result_of, rollout
from tutelage.domain.description import UpdateProgress
from tutelage.domain.errors import InvalidInput, Unavailable
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, StaleCandidates
from tutelage.models.loading import LoadedModel
from tutelage.v1 import policy_pb2


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
    luspo = refused("grpo", {"loss_type": "luspo"})
    assert "options.importance_sampling_level: 'token' is not allowed; allowed: sequence" in luspo
    cispo = refused("grpo", {"loss_type": "cispo", "epsilon_high": 0.28})
    assert "options.epsilon_high: '0.28' is not allowed; allowed: 1 or more" in cispo
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


@pytest.mark.parametrize("algorithm", ["rest_em", "grpo"])
@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"completion_ids": [6, 300], "log_probs": [-1.0, -1.0]}, r"completion_ids.*'300'.*0 to 299"),
        ({"prompt_ids": [-1, 5]}, r"prompt_ids.*'-1'.*0 to 299"),
        ({"forced": [True, False]}, r"forced.*2 of them.*none or 1"),
    ],
    ids=["unknown id", "negative id", "flags"],
)
def test_a_forged_rollout_is_refused_by_its_field(
    algorithm: str, more: dict[str, Any], told: str, settings: TeacherSettings, store: PolicyStore, loaded: LoadedModel
) -> None:
    updates = Updates(settings, store, HASH, vocabulary=300)
    fields = {"prompt_ids": [5], "completion_ids": [6], "log_probs": [-1.0], **more}
    forged = policy_pb2.Rollout(policy_version=store.initial.version, tokenizer_hash=HASH, **fields)
    group = CandidateGroup("g", (ScoredCandidate("a", forged.SerializeToString(), 1.0),))
    asked = request(loaded.model, store.initial.version, algorithm, {})
    with pytest.raises(InvalidInput, match=rf"groups\[0\].candidates\[0\].rollout.{told}"):
        list(updates.update(dataclasses.replace(asked, groups=(group,))))


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
