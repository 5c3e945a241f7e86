"""A policy gradient is of the distribution that was sampled from: recorded and recomputed agree at any temperature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOConfig, RLOOConfig

from teacher.algorithm import NoOptions, Sample, SampleGroup, Training
from teacher.policy_lora import attach_lora
from teacher.sampling import sample_completions
from teacher.scored_trainer import ScoredGRPOTrainer, ScoredRLOOTrainer, build_trainer, log_probs_of, shape_arguments
from teacher.trl_training import common_arguments
from teacher.update_child import read_groups, write_groups
from tutelage.domain.policy import Sampling, UpdateSettings
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import write_tiny_model

PROMPT = (5, 6, 7, 8)


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    loaded = load_model(str(write_tiny_model(tmp_path / "model")), quantisation="none", threads=1)
    # A random model is near to uniform, where a temperature changes next to nothing.
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.mul_(8)
    return loaded


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(("kind", "arguments"), [(ScoredGRPOTrainer, GRPOConfig), (ScoredRLOOTrainer, RLOOConfig)])
def test_a_trainer_computes_what_was_recorded(
    kind: Any, arguments: Any, temperature: float, loaded: LoadedModel, tmp_path: Path
) -> None:
    sampled = sample_completions(loaded.model, PROMPT, (1, 2, 3), Sampling(temperature, 1.0, 6), frozenset())
    samples = tuple(
        Sample(f"{row.row}", PROMPT, row.ids, float(row.row), row.log_probs, temperature=temperature) for row in sampled
    )
    settings = UpdateSettings(rank=4, alpha=8.0)
    training = Training(
        model=attach_lora(loaded.model, settings, None),
        tokenizer=loaded.tokenizer,
        device="cpu",
        groups=(SampleGroup("g", samples),),
        settings=settings,
        options=NoOptions(),
        seed=1,
        scratch=tmp_path,
        report=lambda *step: None,
    )
    config = arguments(**common_arguments(training, len(samples)), **shape_arguments(training))
    trainer = build_trainer(kind, config, training)
    for sample, found_T in zip(samples, log_probs_of(trainer, samples, reference=False), strict=True):
        assert found_T.tolist() == pytest.approx(list(sample.log_probs), abs=1e-4)


def test_a_temperature_changes_what_is_recorded(loaded: LoadedModel) -> None:
    greedy = next(sample_completions(loaded.model, PROMPT, [1], Sampling(0.0, 1.0, 1), frozenset()))
    plain, cool = (
        {row.ids: row.log_probs for row in sample_completions(loaded.model, PROMPT, range(256), sampling, frozenset())}
        for sampling in (Sampling(1.0, 1.0, 1), Sampling(0.3, 1.0, 1))
    )
    assert cool[greedy.ids][0] > plain[greedy.ids][0] + 0.1
    assert greedy.log_probs == pytest.approx(plain[greedy.ids])


def test_an_updates_process_is_told_of_it(tmp_path: Path) -> None:
    groups = (SampleGroup("g", (Sample("a", (1,), (2,), 0.5, (-0.1,), temperature=0.6, weight=0.3),)),)
    write_groups(groups, tmp_path / "groups.safetensors")
    assert read_groups(tmp_path / "groups.safetensors") == groups
