"""The log-probabilities that a candidate was sampled with weigh in what an update learns from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from teacher.config import TeacherSettings
from teacher.update_child import learn
from teacher.update_request import lessons_of
from tests.teacher.scored_groups import HASH, relative_log_prob, request
from tutelage.domain.policy import StaleCandidates
from tutelage.models.loading import LoadedModel, load_model


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
        lambda *step: None,
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


@pytest.mark.parametrize(
    ("name", "options", "stale", "clipped"),
    [
        ("rloo", {}, "drop", False),
        ("rloo", {}, "weight", True),
        ("rloo", {"log_probs": "recorded"}, "drop", True),
        ("grpo", {"importance_sampling_level": "sequence", "loss_type": "grpo"}, "drop", False),
        ("grpo", {"importance_sampling_level": "sequence", "loss_type": "grpo"}, "weight", True),
        ("grpo", {}, "drop", True),
    ],
)
def test_rounding_clips_no_completion_that_the_parent_has_just_written(
    name: str,
    options: dict[str, Any],
    stale: str,
    clipped: bool,
    settings: TeacherSettings,
    loaded: LoadedModel,
    tmp_path: Path,
) -> None:
    """Recorded log-probabilities differ by rounding; only who weighs by age, or by the token, takes them."""
    asked = request(loaded.model, "p", name, {"beta": 0, "epsilon": 0.01, **options})
    still = dataclasses.replace(asked.settings, learning_rate=1e-12, epochs=1, stale=StaleCandidates(stale))
    groups = tuple(
        dataclasses.replace(
            group,
            samples=tuple(
                dataclasses.replace(s, log_probs=tuple(v + (0.1 if s.reward < 0.5 else -0.1) for v in s.log_probs))
                for s in group.samples
            ),
        )
        for group in lessons_of(asked, HASH, {"p": 0}).groups
    )
    logged: list[Any] = []
    fresh = load_model(settings.model, quantisation="none", threads=1)
    learn(fresh, name, still, groups, 1, tmp_path, lambda *step: logged.append(step[3]))
    assert logged
    assert (max(step["clip_ratio/region_mean"] for step in logged) > 0) is clipped
