"""How many candidates a pass has room for changes how fast an update is, and nothing of what it learns."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

import teacher.trl_training
from teacher.algorithm import Sample, SampleGroup
from teacher.algorithms import find_algorithm, options_of
from teacher.config import TeacherSettings
from teacher.update_child import learn
from tests.teacher.scored_groups import token_log_probs
from tutelage.domain.policy import UpdateSettings
from tutelage.models.loading import LoadedModel, load_model


def fresh(settings: TeacherSettings) -> LoadedModel:
    """In float32, where pads change nothing but the last digits."""
    return load_model(settings.model, quantisation="none", threads=1, compute_dtype="float32")


def groups_of(model: Any) -> list[SampleGroup]:
    """Seven of two or three: an odd number of candidates, and of pairs."""
    draw = random.Random(1)
    found = []
    for g in range(7):
        prompt = [draw.randrange(10, 200) for _ in range(4 + g)]
        samples = []
        for c in range(3 if g == 0 else 2):
            ids = [draw.randrange(10, 200) for _ in range(draw.randrange(2, 9))]
            known = tuple(token_log_probs(model, prompt, ids))
            samples.append(Sample(f"{g}-{c}", tuple(prompt), tuple(ids), draw.random() - g, known))
        found.append(SampleGroup(f"g{g}", tuple(samples)))
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", {"loss_type": "dapo", "beta": 0.1}),
        ("grpo", {"loss_type": "grpo", "beta": 0}),
        ("grpo", {"loss_type": "dr_grpo", "beta": 0}),
        ("rloo", {}),
        ("dpo", {}),
    ],
)
def test_an_update_is_the_same(
    name: str,
    options: dict[str, Any],
    settings: TeacherSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three candidates are left for the last step, of which a pass takes two: the third weighs no more than they."""
    arguments = teacher.trl_training.common_arguments
    plain = {"optim": "sgd", "max_grad_norm": 0.0}
    monkeypatch.setattr(teacher.trl_training, "common_arguments", lambda *given: arguments(*given) | plain)
    asked = UpdateSettings(rank=4, alpha=8.0, learning_rate=0.1, epochs=1, batch_size=4, options=options)
    algorithm = find_algorithm(name)
    chosen = algorithm.select(groups_of(fresh(settings).model), asked, options_of(algorithm, asked))
    rows = len(chosen) if name == "dpo" else sum(len(group.samples) for group in chosen)
    assert rows % 4 == 3
    moved = []
    for rows_a_pass in (1, 2):
        base, folder = fresh(settings), tmp_path / str(rows_a_pass)
        made = learn(base, name, asked, chosen, 1, folder, lambda *step: None, rows_a_pass=rows_a_pass)
        moved.append(
            torch.cat(
                [value.detach().flatten() for part, value in made.named_parameters() if ".lora_B.default" in part]
            )
        )
    assert float((moved[1] - moved[0]).norm() / moved[0].norm()) < 1e-3
