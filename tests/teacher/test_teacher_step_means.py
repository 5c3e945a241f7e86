"""What a trainer logs of its steps reaches the update's result: by its own names, bounded, and never NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from teacher.algorithm import NOTHING_LOGGED
from teacher.config import TeacherSettings
from teacher.step_means import LoggedSteps, StepMeans
from teacher.update_child import learn
from teacher.update_request import lessons_of
from tests.teacher.scored_groups import HASH, request
from tutelage.domain.policy import LONGEST_METRIC, MOST_METRICS
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model


def of(*steps: tuple[float, Mapping[str, float]]) -> StepMeans:
    logged = LoggedSteps()
    for loss, values in steps:
        logged.add(loss, values)
    return logged.means()


def test_means_and_the_loss_at_both_ends() -> None:
    found = of((3.0, {"kl": 0.5}), (2.0, {"kl": 1.5, "entropy": 4.0}), (0.5, {}))
    assert found.metrics == pytest.approx({"kl": 1.0, "entropy": 4.0, "loss": 5.5 / 3})
    assert (found.first_loss, found.last_loss) == (3.0, 0.5)
    assert of() == StepMeans()


def test_what_is_no_finite_number_is_in_no_mean() -> None:
    found = of((1.0, {"kl": math.nan, "grad_norm": math.inf}), (math.nan, {"kl": 2.0}))
    assert found == StepMeans({"kl": 2.0, "loss": 1.0}, 1.0, None)
    assert of((1.0, {"huge": 1.7e308}), (1.0, {"huge": 1.7e308})).metrics == {"loss": 1.0}


def test_whatever_is_logged_there_are_bounds() -> None:
    many = {f"name {number}": float(number) for number in range(3 * MOST_METRICS)}
    found = of((1.0, {"": 1.0, "n" * (LONGEST_METRIC + 1): 1.0, **many}), (1.0, {**many, "name 0": 2.0}))
    assert len(found.metrics) == MOST_METRICS
    assert found.metrics["name 0"] == 1.0
    assert found.metrics["loss"] == 1.0
    assert all(0 < len(name) <= LONGEST_METRIC for name in found.metrics)


ALWAYS = {"loss", "grad_norm", "learning_rate", "entropy"}
LOGGED = {
    "rest_em": ({}, {"mean_token_accuracy"}),
    "grpo": ({"beta": 0.04}, {"kl", "clip_ratio/low_mean", "clip_ratio/high_mean"}),
    "rloo": ({}, {"kl", "clip_ratio/region_mean"}),
    "dpo": ({}, {"rewards/margins", "rewards/accuracies", "logps/chosen"}),
}


@pytest.mark.parametrize("algorithm", LOGGED)
def test_what_users_of_trl_look_for_is_logged(algorithm: str, tmp_path: Path) -> None:
    options, expected = LOGGED[algorithm]
    settings = TeacherSettings(model=str(write_tiny_model(tmp_path / "model")), device="cpu", threads=1)
    loaded = load_model(settings.model, quantisation="none", threads=1)
    asked = request(loaded.model, "p", algorithm, options)
    groups = lessons_of(asked, HASH, {"p": 0}).groups
    steps = LoggedSteps()

    def report(steps_done: int, steps_total: int, loss: float, logged: Mapping[str, float] = NOTHING_LOGGED) -> None:
        steps.add(loss, logged)

    learn(loaded, algorithm, asked.settings, groups, 1, tmp_path, report)
    found = steps.means()
    assert found.metrics.keys() >= ALWAYS | expected
    assert not {"epoch", "num_tokens"} & found.metrics.keys()
    assert found.first_loss is not None
    assert found.first_loss != found.last_loss
