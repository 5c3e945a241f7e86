"""Which part of a candidate is learnt: the other carries no loss, and what has no such part is left out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from teacher.algorithm import Sample, SampleGroup, Training, free_flags
from teacher.algorithms import find_algorithm
from teacher.candidate_part import WHY_NONE, learning_part
from teacher.grpo import GRPOOptions
from teacher.rest_em import RestEMOptions
from teacher.rloo import RLOOOptions
from tutelage.domain.policy import UpdateSettings

OPTIONS: dict[str, Any] = {"rest_em": RestEMOptions, "grpo": GRPOOptions, "rloo": RLOOOptions}
TEXT = {1: "{", 2: "7", 3: "}\n", 4: "A fact.", 5: "\n", 6: "Another."}
TOKENIZER = SimpleNamespace(decode=lambda ids: "".join(TEXT[token] for token in ids))
LINE_AND_NOTES = (1, 2, 3, 4, 5, 6)
FORCED = (True, False, True, False, False, False)


def sample(name: str, reward: float, forced: tuple[bool, ...] = FORCED) -> Sample:
    log_probs = tuple(-0.1 * place for place in range(len(LINE_AND_NOTES)))
    return Sample(name, (9,), LINE_AND_NOTES, reward, log_probs=log_probs, forced=forced)


def learnt(part: Any, forced: tuple[bool, ...] = FORCED) -> Sample:
    training = Training(
        None, TOKENIZER, "cpu", (SampleGroup("g", (sample("s", 1.0, forced),)),), UpdateSettings(), RestEMOptions(), 1,
        Path(), lambda *step: None,
    )  # fmt: skip
    return learning_part(training, part).samples[0]


def test_of_the_first_line_its_free_tokens_carry_loss_and_nothing_follows() -> None:
    found = learnt("first_line")
    assert (found.completion_ids, found.log_probs) == ((1, 2, 3), (-0.0, -0.1, -0.2))
    assert free_flags(found) == [0, 1, 0]


def test_of_the_notes_all_behind_the_first_line_carries_loss() -> None:
    found = learnt("notes")
    assert found.completion_ids == LINE_AND_NOTES
    assert free_flags(found) == [0, 0, 0, 1, 1, 1]


def test_of_all_only_what_was_forced_carries_none() -> None:
    assert free_flags(learnt("all")) == [0, 1, 0, 1, 1, 1]


def test_directives_and_a_chosen_format_count_as_one_line() -> None:
    chosen = SimpleNamespace(decode=lambda ids: "".join("Format: rewrite" if i == 4 else TEXT[i] for i in ids))
    group = SampleGroup("g", (sample("s", 1.0),))
    training = Training(None, chosen, "cpu", (group,), UpdateSettings(), RestEMOptions(), 1, Path(), lambda *step: None)
    assert learning_part(training, "first_line").samples[0].completion_ids == (1, 2, 3, 4, 5)
    assert free_flags(learning_part(training, "notes").samples[0]) == [0, 0, 0, 0, 0, 1]


def test_without_a_form_all_is_notes() -> None:
    assert free_flags(learnt("notes", ())) == [1] * len(LINE_AND_NOTES)


@pytest.mark.parametrize("name", OPTIONS)
def test_candidates_without_a_form_have_no_first_line_to_learn(name: str) -> None:
    algorithm, settings = find_algorithm(name), UpdateSettings()
    options = OPTIONS[name](part="first_line")
    mixed = SampleGroup("g", (sample("a", 1.0), sample("b", 0.2), sample("c", 0.9, ())))
    chosen = algorithm.select([mixed], settings, options)
    assert {each.candidate_id for group in chosen for each in group.samples} <= {"a", "b"}
    assert chosen
    plain = [SampleGroup("g", (sample("a", 1.0, ()), sample("b", 0.0, ())))]
    assert not [each for group in algorithm.select(plain, settings, options) for each in group.samples]
    assert algorithm.why_nothing(plain, settings, options) == WHY_NONE
    best_has_none = [SampleGroup("g", (sample("a", -0.5), sample("b", -0.5), sample("c", 0.9, ())))]
    assert "0.9" not in algorithm.why_nothing(best_has_none, settings, options)
    assert algorithm.why_nothing(plain, settings, OPTIONS[name]()) != WHY_NONE
