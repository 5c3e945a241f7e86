"""Products of small matrices in float32, compiled for the CPU: sixteen sums side by side in registers.

A matrix is rows behind each other, named by the address of its first value, in float32 or, where a function is told
that it is `half`, in bfloat16. A first factor is taken four rows at a time: what lies beyond its last row is read and
may be any values, and what comes of it is written where `room_of` leaves room.
"""

from __future__ import annotations

from typing import Any

from student.compiled import LANES, compiled, fused, get, narrow, put, read, repeat, total, widen, write, zeros

F32 = 4
"""Bytes of a float32."""
STEP = F32 * LANES
Four = tuple[Any, Any, Any, Any]
"""Four times sixteen values, in a row."""


def room_of(rows: int) -> int:
    """Rows that a first factor or a result has room for."""
    return (rows + 3) // 4 * 4


padded = compiled(room_of)
"""The same, in compiled code."""


@compiled
def take(source: int, half: int, at: int, count: int) -> Any:
    """Sixteen values of a matrix from one on, or as many as `count` of them and zeros, widened."""
    return widen(source + 2 * at, count) if half else read(source + F32 * at, count)


@compiled
def give(value: Any, to: int, half: int, at: int, count: int) -> None:
    """The other way, rounded."""
    if half:
        narrow(value, to + 2 * at, count)
    else:
        write(value, to + F32 * at, count)


@compiled
def load(source: int, half: int, rows: int, width: int, stride: int, to: int) -> None:
    """Rows that begin `stride` values apart, behind each other in float32."""
    for s in range(rows):
        for i in range(0, width, LANES):
            write(take(source, half, s * stride + i, width - i), to + F32 * (s * width + i), width - i)


@compiled
def store(source: int, rows: int, width: int, to: int, half: int, stride: int) -> None:
    """The other way, rounded."""
    for s in range(rows):
        for i in range(0, width, LANES):
            give(read(source + F32 * (s * width + i), width - i), to, half, s * stride + i, width - i)


@compiled
def transpose(a: int, rows: int, width: int, to: int) -> None:
    """to[i, s] = a[s, i]."""
    for s in range(rows):
        for i in range(width):
            put(get(a + F32 * (s * width + i)), to + F32 * (i * rows + s))


@compiled
def no_sums() -> Four:
    return zeros(), zeros(), zeros(), zeros()


@compiled
def take_four(source: int, half: int, at: int, count: int) -> Four:
    first, second = take(source, half, at, count), take(source, half, at + LANES, count - LANES)
    third = take(source, half, at + 2 * LANES, count - 2 * LANES)
    return first, second, third, take(source, half, at + 3 * LANES, count - 3 * LANES)


@compiled
def give_four(values: Four, to: int, half: int, at: int, count: int) -> None:
    give(values[0], to, half, at, count)
    give(values[1], to, half, at + LANES, count - LANES)
    give(values[2], to, half, at + 2 * LANES, count - 2 * LANES)
    give(values[3], to, half, at + 3 * LANES, count - 3 * LANES)


@compiled
def add_four(a: Any, values: Four, sums: Four) -> Four:
    """a times the values, and the sums."""
    first, second = fused(a, values[0], sums[0]), fused(a, values[1], sums[1])
    return first, second, fused(a, values[2], sums[2]), fused(a, values[3], sums[3])


@compiled
def _put_totals(sums: Four, scaling: float, at: int) -> None:
    put(scaling * total(sums[0]), at)
    put(scaling * total(sums[1]), at + F32)
    put(scaling * total(sums[2]), at + 2 * F32)
    put(scaling * total(sums[3]), at + 3 * F32)


@compiled
def inner(x: int, rows: int, width: int, a: int, ranks: int, to: int, to_width: int, scaling: float) -> None:
    """to[s, r] = scaling sum over i of x[s, i] a[r, i]; rows are padded."""
    line, below = F32 * width, F32 * to_width
    fours = ranks // 4 * 4
    for s in range(0, rows, 4):
        x0 = x + s * line
        for r in range(0, fours, 4):
            a0 = a + r * line
            c0, c1, c2, c3 = no_sums(), no_sums(), no_sums(), no_sums()
            for i in range(0, line, STEP):
                n = (line - i) // F32
                first, second = read(a0 + i, n), read(a0 + line + i, n)
                values = first, second, read(a0 + 2 * line + i, n), read(a0 + 3 * line + i, n)
                c0, c1 = add_four(read(x0 + i, n), values, c0), add_four(read(x0 + line + i, n), values, c1)
                c2 = add_four(read(x0 + 2 * line + i, n), values, c2)
                c3 = add_four(read(x0 + 3 * line + i, n), values, c3)
            at = to + s * below + F32 * r
            _put_totals(c0, scaling, at)
            _put_totals(c1, scaling, at + below)
            _put_totals(c2, scaling, at + 2 * below)
            _put_totals(c3, scaling, at + 3 * below)
        for r in range(fours, ranks):
            c = no_sums()
            for i in range(0, line, STEP):
                n = (line - i) // F32
                first, second = read(x0 + i, n), read(x0 + line + i, n)
                values = first, second, read(x0 + 2 * line + i, n), read(x0 + 3 * line + i, n)
                c = add_four(read(a + r * line + i, n), values, c)
            at = to + s * below + F32 * r
            put(scaling * total(c[0]), at)
            put(scaling * total(c[1]), at + below)
            put(scaling * total(c[2]), at + 2 * below)
            put(scaling * total(c[3]), at + 3 * below)


@compiled
def outer(h: int, h_width: int, ranks: int, g: int, rows: int, width: int, to: int, beta: int) -> None:
    """to[r, o] = beta to[r, o] + sum over s of h[s, r] g[s, o]; beta is 0 or 1."""
    fours = ranks // 4 * 4
    for o in range(0, width, 4 * LANES):
        n = width - o
        for r in range(0, fours, 4):
            at = r * width + o
            c0, c1, c2, c3 = no_sums(), no_sums(), no_sums(), no_sums()
            if beta:
                c0, c1 = take_four(to, 0, at, n), take_four(to, 0, at + width, n)
                c2, c3 = take_four(to, 0, at + 2 * width, n), take_four(to, 0, at + 3 * width, n)
            for s in range(rows):
                each, values = h + F32 * (s * h_width + r), take_four(g, 0, s * width + o, n)
                c0, c1 = add_four(repeat(each), values, c0), add_four(repeat(each + F32), values, c1)
                c2, c3 = add_four(repeat(each + 2 * F32), values, c2), add_four(repeat(each + 3 * F32), values, c3)
            give_four(c0, to, 0, at, n)
            give_four(c1, to, 0, at + width, n)
            give_four(c2, to, 0, at + 2 * width, n)
            give_four(c3, to, 0, at + 3 * width, n)
        for r in range(fours, ranks):
            c = take_four(to, 0, r * width + o, n if beta else 0)
            for s in range(rows):
                c = add_four(repeat(h + F32 * (s * h_width + r)), take_four(g, 0, s * width + o, n), c)
            give_four(c, to, 0, r * width + o, n)


@compiled
def multiply(
    h: int, h_width: int, rows: int, count: int, b: int, b_width: int, width: int, to: int, to_width: int
) -> None:
    """to[s, o] = sum over r < count of h[s, r] b[r, o], for o < width; rows are padded."""
    across = F32 * h_width
    for o in range(0, width, 4 * LANES):
        n = width - o
        for s in range(0, rows, 4):
            c0, c1, c2, c3 = no_sums(), no_sums(), no_sums(), no_sums()
            for r in range(count):
                each, values = h + s * across + F32 * r, take_four(b, 0, r * b_width + o, n)
                c0, c1 = add_four(repeat(each), values, c0), add_four(repeat(each + across), values, c1)
                c2, c3 = (
                    add_four(repeat(each + 2 * across), values, c2),
                    add_four(repeat(each + 3 * across), values, c3),
                )
            at = s * to_width + o
            give_four(c0, to, 0, at, n)
            give_four(c1, to, 0, at + to_width, n)
            give_four(c2, to, 0, at + 2 * to_width, n)
            give_four(c3, to, 0, at + 3 * to_width, n)
