"""Tokens that are not learnt: sampling tells which were forced, they teach nothing, and the head never sees them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from teacher.config import TeacherSettings
from teacher.sampling import Sampled, sample_completions
from teacher.update_child import learn
from teacher.update_request import lessons_of
from tests.teacher.scored_groups import COMPLETIONS, HASH, PROMPTS, relative_log_prob, request, token_log_probs
from tutelage.domain.policy import Sampling
from tutelage.models.loading import LoadedModel, load_model

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
    model = learn(fresh, name, asked.settings, groups, 1, tmp_path, lambda *step: None).eval()
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
    model = learn(fresh, name, asked.settings, groups, 1, tmp_path, lambda *step: None).eval()
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
