"""Attention formed whole: each row's own, as exact as torch's in the same dtype, whoever is beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from student.row_attention import RowAttention

HEADS, GROUPS, FEATURES, SCALE = 6, 2, 16, 0.3
Inputs = tuple[torch.Tensor, ...]


def inputs(lengths: list[int], dtype: torch.dtype, size: float = 1.0) -> Inputs:
    """q, k and v, and the gradient of what comes of them; queries of this size, that scores are as large."""
    torch.manual_seed(sum(lengths))
    shapes = ((1, HEADS), (1, GROUPS), (1, GROUPS))
    values = [torch.randn(*shape, sum(lengths), FEATURES) for shape in shapes]
    values = [(each * scale).to(dtype).requires_grad_() for each, scale in zip(values, (size, 1.0, 1.0), strict=True)]
    return (*values, torch.randn(1, sum(lengths), HEADS, FEATURES, dtype=dtype))


def ours(given: Inputs, lengths: list[int]) -> list[torch.Tensor]:
    """Output and gradients."""
    *qkv, gradient = given
    output = RowAttention.apply(*qkv, lengths, SCALE)
    assert output.dtype == gradient.dtype
    return [output.detach(), *torch.autograd.grad(output, qkv, gradient)]


def of_torch(given: Inputs, lengths: list[int], dtype: torch.dtype) -> list[torch.Tensor]:
    """The same, row by row, computed in `dtype`."""
    *qkv, gradient = (each.detach().to(dtype) for each in given)
    q, k, v = (each.requires_grad_() for each in qkv)
    rows = []
    for q_row, k_row, v_row in zip(*(tensor.split(lengths, dim=2) for tensor in (q, k, v)), strict=True):
        row = scaled_dot_product_attention(q_row, k_row, v_row, is_causal=True, scale=SCALE, enable_gqa=True)
        rows.append(row.transpose(1, 2))
    output = torch.cat(rows, dim=1)
    return [output.detach(), *torch.autograd.grad(output, (q, k, v), gradient)]


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


lengths_of_rows = st.lists(st.integers(1, 96), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of_rows)
def test_in_float32_it_is_that_of_torch(lengths: list[int]) -> None:
    given_ = inputs(lengths, torch.float32)
    for found, expected in zip(ours(given_, lengths), of_torch(given_, lengths, torch.float32), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1.0, 8.0, 30.0])
@pytest.mark.parametrize("length", [2, 47, 64, 200])
def test_in_bfloat16_it_is_as_exact_as_that_of_torch(length: int, size: float) -> None:
    lengths = [length, 3]
    given_ = inputs(lengths, torch.bfloat16, size)
    exact = of_torch(given_, lengths, torch.float32)
    theirs = of_torch(given_, lengths, torch.bfloat16)
    for found, other, expected in zip(ours(given_, lengths), theirs, exact, strict=True):
        assert far(found, expected) < max(0.005, 1.5 * far(other, expected))


@settings(max_examples=40, deadline=None)
@given(lengths=lengths_of_rows, seed=st.integers(0, 9))
def test_a_row_is_the_same_alone_and_beside_others(lengths: list[int], seed: int) -> None:
    given_ = inputs(lengths, torch.bfloat16)
    place = seed % len(lengths)
    begin, length = sum(lengths[:place]), lengths[place]
    q, k, v, gradient = given_
    alone = tuple(each.detach().narrow(2, begin, length).clone().requires_grad_() for each in (q, k, v))
    own = ours((*alone, gradient.narrow(1, begin, length)), [length])
    output, *gradients = ours(given_, lengths)
    assert torch.equal(output.narrow(1, begin, length), own[0])
    for beside, single in zip(gradients, own[1:], strict=True):
        assert torch.equal(beside.narrow(2, begin, length), single)


def test_what_is_no_number_in_one_row_stays_there_on_any_number_of_threads() -> None:
    lengths = [40, 3, 70, 9]
    *qkv, gradient = inputs(lengths, torch.float32)
    whole = ours((*qkv, gradient), lengths)
    with torch.no_grad():
        for each in qkv:
            each[:, :, 40:43] = torch.nan
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            output, *gradients = ours((*qkv, gradient), lengths)
            assert output[:, 40:43].isnan().all()
            assert torch.equal(output[:, :40], whole[0][:, :40])
            assert torch.equal(output[:, 43:], whole[0][:, 43:])
            for before, after in zip(whole[1:], gradients, strict=True):
                assert torch.equal(before[:, :, :40], after[:, :, :40])
                assert torch.equal(before[:, :, 43:], after[:, :, 43:])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("spoilt", ["features", "dtype", "tokens"])
def test_what_does_not_fit_together_is_refused(spoilt: str) -> None:
    q, k, v, _ = inputs([5], torch.float32)
    if spoilt == "features":
        v = v[..., :8]
    elif spoilt == "dtype":
        v = v.bfloat16()
    with pytest.raises(ValueError, match="attend with"):
        RowAttention.apply(q, k, v, [6 if spoilt == "tokens" else 5], SCALE)
