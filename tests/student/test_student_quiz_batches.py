"""A quiz's memory is bounded: batches hold so many rows and so many tokens, and lose nobody."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from student import quiz_room
from student.quiz_room import _Row, _within

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory


@given(st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 2000), st.integers(1, 64))
def test_parts_hold_the_tokens_that_they_may_and_keep_the_order(lengths: list[int], tokens: int, new: int) -> None:
    rows = [_Row(0, place, (), [1] * length) for place, length in enumerate(lengths)]
    parts = _within(rows, tokens, new)
    assert [row for part in parts for row in part] == rows
    for part in parts:
        longest = max(len(row.prompt) for row in part)
        assert len(part) == 1 or len(part) * (longest + new) <= tokens
    # As few as the order allows: no part would have had room for the next one's first row.
    for part, after in pairwise(parts):
        together = [*part, after[0]]
        assert len(together) * (max(len(row.prompt) for row in together) + new) > tokens


def test_a_quiz_in_small_batches_is_answered_as_in_large_ones(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(slots=1)
    key = make_key(engine)
    sizes: list[int] = []
    real = quiz_room.generate

    def counted(bank: Any, rows: Any, *rest: Any) -> Any:
        sizes.append(len(rows))
        return real(bank, rows, *rest)

    monkeypatch.setattr(quiz_room, "generate", counted)
    whole = engine.answer(key.quiz.questions * 3)
    largest = max(sizes)
    sizes.clear()
    monkeypatch.setattr(quiz_room, "BATCH_TOKENS", 1)
    assert [each.text for each in engine.answer(key.quiz.questions * 3)] == [each.text for each in whole]
    assert largest > 1
    assert set(sizes) == {1}
