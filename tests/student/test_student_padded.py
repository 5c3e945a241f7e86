"""Rows as padded batches and back: every token returns to its place, and what pads a row touches nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student.packing import padded_attention
from student.padded import SHORTEST, Padded, length_class
from student.row_attention import RowAttention

CPU = torch.device("cpu")
lengths_of = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def spans_of(lengths: Sequence[int]) -> list[tuple[int, int]]:
    stops = list(itertools.accumulate(lengths))
    return [(stop - length, stop) for length, stop in zip(lengths, stops, strict=True)]


@given(lengths_of, st.data())
def test_tokens_return_to_their_places_and_others_are_zero(lengths: Sequence[int], data: st.DataObject) -> None:
    spans, tokens = spans_of(lengths), sum(lengths)
    chosen = data.draw(st.lists(st.sampled_from(spans), min_size=1, unique=True))
    values_N3 = torch.arange(1.0, 3 * tokens + 1).view(tokens, 3)
    places = Padded.of(chosen, tokens, CPU)
    spread = places.spread(values_N3)
    assert spread.shape == (len(chosen), max(stop - start for start, stop in chosen), 3)
    for (start, stop), row in zip(chosen, spread, strict=True):
        assert torch.equal(row[: stop - start], values_N3[start:stop])
        assert not row[stop - start :].any()
    expected = torch.zeros_like(values_N3)
    for start, stop in chosen:
        expected[start:stop] = values_N3[start:stop]
    assert torch.equal(places.gathered(spread), expected)


def test_a_row_that_is_not_a_number_stays_alone() -> None:
    spans = spans_of([5, 3, 4])
    values_N2 = torch.ones(12, 2)
    values_N2[:5] = torch.nan
    places = Padded.of(spans[1:], 12, CPU)
    assert torch.isfinite(places.spread(values_N2)).all()
    values_GS2 = torch.ones(2, 4, 2)
    values_GS2[0] = torch.nan
    found = places.gathered(values_GS2)
    # Tokens without a place look at the first one, which is not a number.
    assert not found[:5].any()
    assert found[5:8].isnan().all()
    assert torch.isfinite(found[8:]).all()
    sums_N2 = torch.zeros(12, 2)
    places.add_to(sums_N2, values_GS2)
    torch.testing.assert_close(sums_N2, found, equal_nan=True)


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_a_class_wastes_at_most_half_of_its_places(one: int, other: int) -> None:
    if length_class(one) == length_class(other):
        assert max(one, other) <= max(SHORTEST, 2 * min(one, other))


@pytest.mark.parametrize("lengths", [(7,), (5, 90, 1, 12, 130), (64, 65, 3)])
def test_padded_attention_is_that_of_each_row(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tokens = sum(lengths)
    q, k, v = inputs = [torch.randn(1, heads, tokens, 8, requires_grad=True) for heads in (6, 2, 2)]
    again = [each.detach().clone().requires_grad_() for each in inputs]
    ours, expected = padded_attention(q, k, v, lengths, 0.3), RowAttention.apply(*again, lengths, 0.3)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn(ours.shape)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, theirs in zip(inputs, again, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_places_made_for_a_quiz_serve_a_pass_that_trains() -> None:
    with torch.inference_mode():
        q = torch.randn(1, 1, 9, 4)
        padded_attention(q, q, q, (9,), 1.0)
    q = torch.randn(1, 1, 9, 4, requires_grad=True)
    padded_attention(q, q, q, (9,), 1.0).sum().backward()
    assert q.grad is not None
