"""One thing has one id, however its numbers were written; different things have different ids."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.domain.canonical import canonical_json, content_hash, derived_seed
from tutelage.domain.evaluation import EvaluationKey, InnerLoopSettings
from tutelage.domain.policy import Sampling, UpdateSettings
from tutelage.domain.self_edit import ChatDocument, Directives, SelfEdit, TextDocument
from tutelage.domain.task import Question, Quiz


def key(**changes: object) -> EvaluationKey:
    first = EvaluationKey(
        "model",
        "revision",
        "nf4",
        "",
        SelfEdit((TextDocument("a"),)),
        Quiz((Question("q", "who?", "me"),)),
        Quiz(),
        ("contains",),
        InnerLoopSettings(),
        "1",
        7,
    )
    return replace(first, **changes)  # type: ignore[arg-type]


def test_whole_numbers_and_floats_give_one_id() -> None:
    assert key(settings=InnerLoopSettings(alpha=64, weight_decay=0)).id == key(settings=InnerLoopSettings()).id
    assert content_hash(Sampling(temperature=1)) == content_hash(Sampling(temperature=1.0))
    assert content_hash(UpdateSettings(alpha=128)) == content_hash(UpdateSettings(alpha=128.0))
    assert content_hash(Directives(learning_rate=1)) == content_hash(Directives(learning_rate=1.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model": "other"},
        {"adapter_version": "v1"},
        {"seed": 8},
        {"graders": ("exact",)},
        {"settings": InnerLoopSettings(rank=16)},
        {"settings": InnerLoopSettings(adapt_last_layers=4)},
        {"settings": InnerLoopSettings(plateau_epochs=1)},
        {"self_edit": SelfEdit((TextDocument("b"),))},
        {"quiz": Quiz((Question("q", "who?", "you"),))},
    ],
)
def test_every_part_of_the_key_changes_the_id(changes: dict[str, object]) -> None:
    assert key(**changes).id != key().id


def test_documents_of_different_kinds_never_share_an_id() -> None:
    assert canonical_json(TextDocument("")) != canonical_json(ChatDocument(()))


def test_numbers_without_a_json_form_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"x": float("nan")})


@given(
    st.lists(st.one_of(st.text(), st.integers()), max_size=4), st.lists(st.one_of(st.text(), st.integers()), max_size=4)
)
def test_seeds_are_in_range_and_follow_their_parts(one: list[object], other: list[object]) -> None:
    seed = derived_seed(*one)
    assert 0 <= seed < 2**31
    assert (seed == derived_seed(*other)) == (one == other)


def test_the_supporting_sentence_is_no_part_of_what_is_asked() -> None:
    supported = Question("q", "who?", "me", support="It was me.")
    assert supported == Question("q", "who?", "me")
    assert key(quiz=Quiz((supported,))).id == key().id
    # What is stored under ids of keys without a supporting sentence keeps them.
    without = '{"aliases":[],"answer":"me","id":"q","text":"who?","topic":"","type":"Question"}'
    assert canonical_json(supported) == without
