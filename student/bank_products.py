"""The products of adapters on their stretches of tokens, compiled for the CPU.

One call serves a family of projections and all stretches of a pass. A stretch is taken ROWS tokens at a time: they are
widened to float32 in a scratch that stays in the core's cache, and what is added to a result is rounded once. Sixteen
sums are formed side by side in registers. A table tells where everything lies, a line for each adapter's part in a
stretch; those of one stretch follow each other.
Names as in student/bank_stretched.py: N tokens of all stretches, I features in, O out, R rank, J the ranks of a
family's members. All matrices are rows behind each other, named by the address of the first value.
"""

from __future__ import annotations

from typing import Any

from student.compiled import LANES, compiled, kept, repeat
from student.matrices import F32, add_four, give_four, inner, load, outer, padded, take_four

START, STOP, INNER, BETA, RANK, RANKS, A, DA, MEMBERS = range(9)
"""Columns of a table: a stretch's first token and the one behind its last; where the line's first products begin among
those of all; by what gradients are multiplied before a product is added, 0 or 1; R and J; the addresses of A [J, I] and
of its gradient."""
AT, B, DB, MEMBER = range(4)
"""Of a member, from MEMBERS on and MEMBER columns apart: where its ranks begin in J, -1 if the adapter has no part in
the projection; the addresses of B transposed [R, O] and of its gradient. The address of nothing is 0."""

ROWS = 96
"""Tokens taken at a time; a multiple of four."""


def scratch_values(features: int, most_out: int, most_ranks: int) -> int:
    """Float32 of the scratch for a family of so many features in, out of its widest projection, and ranks a stretch."""
    return ROWS * (features + most_out + most_ranks)


@compiled
def _add(
    table: Any, first: int, last: int, member: int, h: int, h_rows: int, y: int, half: int, rows: int, width: int
) -> None:
    """y[s, o] += sum over r of h[s, r] b[r, o], of the adapters of lines `first` to `last`.

    Their h, [h_rows, J] of each, lie behind each other; b is B of the projection whose columns begin at `member`, or A
    where that is 0.
    """
    for o in range(0, width, 4 * LANES):
        for s in range(0, rows, 4):
            # No lane of what is beyond the last row.
            n0 = width - o
            n1, n2, n3 = n0 if s + 1 < rows else 0, n0 if s + 2 < rows else 0, n0 if s + 3 < rows else 0
            at = s * width + o
            c0, c1 = take_four(y, half, at, n0), take_four(y, half, at + width, n1)
            c2, c3 = take_four(y, half, at + 2 * width, n2), take_four(y, half, at + 3 * width, n3)
            h_each = h
            for each in range(first, last):
                ranks = table[each, RANKS]
                count, begin, b = ranks, 0, table[each, A]
                if member:
                    count, begin, b = table[each, RANK], table[each, member + AT], table[each, member + B]
                if begin >= 0:
                    h0 = h_each + F32 * (s * ranks + begin)
                    h1, h2, h3 = h0 + F32 * ranks, h0 + 2 * F32 * ranks, h0 + 3 * F32 * ranks
                    for r in range(count):
                        values = take_four(b, 0, r * width + o, n0)
                        c0, c1 = add_four(repeat(h0 + F32 * r), values, c0), add_four(repeat(h1 + F32 * r), values, c1)
                        c2, c3 = add_four(repeat(h2 + F32 * r), values, c2), add_four(repeat(h3 + F32 * r), values, c3)
                h_each += F32 * h_rows * ranks
            give_four(c0, y, half, at, n0)
            give_four(c1, y, half, at + width, n1)
            give_four(c2, y, half, at + 2 * width, n2)
            give_four(c3, y, half, at + 3 * width, n3)


@compiled
def _behind(table: Any, first: int) -> int:
    """The line behind the last of the stretch that begins with line `first`."""
    last = first + 1
    while last < len(table) and table[last, START] == table[first, START]:
        last += 1
    return last


@kept
def add_adapters(
    table: Any, scalings: Any, x: int, half: int, features: int, ys: Any, outs: Any, products: int, scratch: int
) -> None:
    """y[s, o] += scaling (x A^T)[s, .] B[., o] of each stretch's adapters, for each projection of a family.

    `x` is [N, I], `ys` the addresses of each [N, O] and `outs` their O; bfloat16 where `half` is 1, else float32. At
    `products` each line's scaling x A^T is left, [padded rows, J].
    """
    size = 2 if half else F32
    first = 0
    while first < len(table):
        last = _behind(table, first)
        start, rows = table[first, START], table[first, STOP] - table[first, START]
        for s in range(0, rows, ROWS):
            some = min(ROWS, rows - s)
            load(x + (start + s) * features * size, half, some, features, features, scratch)
            for line in range(first, last):
                ranks = table[line, RANKS]
                h = products + F32 * (table[line, INNER] + s * ranks)
                inner(scratch, padded(some), features, table[line, A], ranks, h, ranks, scalings[line])
        for i in range(len(ys)):
            y, h = ys[i] + start * outs[i] * size, products + F32 * table[first, INNER]
            _add(table, first, last, MEMBERS + MEMBER * i, h, padded(rows), y, half, rows, outs[i])
        first = last


@kept
def derive_adapters(
    table: Any,
    scalings: Any,
    x: int,
    half: int,
    features: int,
    gs: Any,
    outs: Any,
    products: int,
    dx: int,
    scratch: int,
) -> None:
    """The derivatives of what `add_adapters` did: the adapters' are written, those by x added at `dx`, if it is not 0.

    `gs` are the addresses of the derivatives by what `ys` are there; all else is as there.
    """
    size = 2 if half else F32
    g_rows = scratch + F32 * ROWS * features
    dh_rows = g_rows + F32 * ROWS * max(outs)
    first = 0
    while first < len(table):
        last = _behind(table, first)
        start, rows = table[first, START], table[first, STOP] - table[first, START]
        for s in range(0, rows, ROWS):
            some = min(ROWS, rows - s)
            for i in range(len(gs)):
                member, dh, loaded = MEMBERS + MEMBER * i, dh_rows, False
                for line in range(first, last):
                    ranks, at = table[line, RANKS], table[line, member + AT]
                    if at >= 0:
                        if not loaded:
                            load(gs[i] + (start + s) * outs[i] * size, half, some, outs[i], outs[i], g_rows)
                            loaded = True
                        rank, b, db = table[line, RANK], table[line, member + B], table[line, member + DB]
                        inner(g_rows, padded(some), outs[i], b, rank, dh + F32 * at, ranks, scalings[line])
                        if db:
                            h = products + F32 * (table[line, INNER] + s * ranks + at)
                            outer(h, ranks, rank, g_rows, some, outs[i], db, 1 if s else table[line, BETA])
                    dh += F32 * padded(some) * ranks
            load(x + (start + s) * features * size, half, some, features, features, scratch)
            dh = dh_rows
            for line in range(first, last):
                ranks = table[line, RANKS]
                if table[line, DA]:
                    outer(dh, ranks, ranks, scratch, some, features, table[line, DA], 1 if s else table[line, BETA])
                dh += F32 * padded(some) * ranks
            if dx:
                y = dx + (start + s) * features * size
                _add(table, first, last, 0, dh_rows, padded(some), y, half, some, features)
        first = last
