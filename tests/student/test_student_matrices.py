"""Products of small matrices of any shape are those of torch, and nothing is written beside them."""

from __future__ import annotations

from typing import cast

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import float32

from student import matrices
from student.compiled import compiled

sizes = st.integers(1, 70)
ranks = st.integers(1, 21)
GUARD = 64
HALF = cast(float, float32(0.5))


@compiled
def products(
    x: int, rows: int, width: int, a: int, count: int, h: int, h_width: int, b: int, to: int, beta: int, y: int
) -> None:
    matrices.inner(x, matrices.padded(rows), width, a, count, h, h_width, HALF)
    matrices.outer(h, h_width, count, x, rows, width, to, beta)
    matrices.multiply(h, h_width, matrices.padded(rows), count, b, width, width, y, width)


@compiled
def moved(source: int, half: int, rows: int, width: int, stride: int, floats: int, turned: int, to: int) -> None:
    matrices.load(source, half, rows, width, stride, floats)
    matrices.transpose(floats, rows, width, turned)
    matrices.store(floats, rows, width, to, half, stride)


def guarded(rows: int, width: int) -> torch.Tensor:
    """Room for a matrix, between values that nobody may change."""
    return torch.full((2 * GUARD + rows * width,), 9.0)


def inside(room: torch.Tensor, rows: int, width: int) -> torch.Tensor:
    assert (room[:GUARD] == 9.0).all()
    assert (room[GUARD + rows * width :] == 9.0).all()
    return room[GUARD : GUARD + rows * width].view(rows, width)


@settings(deadline=None)
@given(rows=sizes, width=st.integers(1, 150), count=ranks, more=st.integers(0, 5), beta=st.integers(0, 1))
def test_products_of_any_shape_are_those_of_torch(rows: int, width: int, count: int, more: int, beta: int) -> None:
    torch.manual_seed(rows * 1000 + width)
    four = (rows + 3) // 4 * 4
    # What lies beyond the rows may be anything.
    x = torch.cat([torch.randn(rows, width), torch.full((four - rows, width), torch.nan)])
    a, b, held = torch.randn(count, width), torch.randn(count, width), torch.randn(count, width)
    h, to, y = guarded(four, count + more), guarded(count, width), guarded(four, width)
    h[GUARD : GUARD + four * (count + more)] = 5.0
    to[GUARD : GUARD + count * width] = held.flatten()
    at = 4 * GUARD
    products(
        x.data_ptr(), rows, width, a.data_ptr(), count, h.data_ptr() + at, count + more, b.data_ptr(),
        to.data_ptr() + at, beta, y.data_ptr() + at,
    )  # fmt: skip
    h_SR = 0.5 * x[:rows] @ a.T
    found = inside(h, four, count + more)
    torch.testing.assert_close(found[:rows, :count], h_SR, rtol=1e-4, atol=1e-4)
    assert (found[:, count:] == 5.0).all()
    expected = h_SR.T @ x[:rows] + (held if beta else 0)
    torch.testing.assert_close(inside(to, count, width), expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(inside(y, four, width)[:rows], h_SR @ b, rtol=1e-4, atol=1e-3)


@settings(deadline=None)
@given(rows=sizes, width=sizes, more=st.integers(0, 5), half=st.booleans())
def test_rows_apart_are_loaded_turned_and_stored_as_they_are(rows: int, width: int, more: int, half: bool) -> None:
    torch.manual_seed(rows * 1000 + width)
    dtype = torch.bfloat16 if half else torch.float32
    source = torch.randn(rows, width + more).to(dtype)
    to = torch.full_like(source, 9.0)
    floats, turned = guarded(rows, width), guarded(rows, width)
    at = 4 * GUARD
    moved(
        source.data_ptr(), int(half), rows, width, width + more, floats.data_ptr() + at, turned.data_ptr() + at,
        to.data_ptr(),
    )  # fmt: skip
    assert torch.equal(inside(floats, rows, width), source[:, :width].float())
    assert torch.equal(inside(turned, width, rows), source[:, :width].float().T)
    assert torch.equal(to[:, :width], source[:, :width])
    assert (to[:, width:] == 9.0).all()
