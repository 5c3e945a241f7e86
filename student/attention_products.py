"""Causal attention of short rows, and its derivatives, compiled for the CPU.

A row's scores are formed whole, for one head at a time, in a scratch that stays in the core's cache; four tokens at a
time, and only with the tokens that they may look at. All is computed in float32, and results are rounded once. For the
backward pass one number a token and head is kept, the logarithm of the sum of its exponentials: the probabilities are
computed again.
H query heads, G key heads, N tokens of all rows, T those of one, E features of a head.
"""

from __future__ import annotations

import math
from typing import Any

from student.compiled import (
    LANES,
    compiled,
    exponential,
    fused,
    get,
    kept,
    larger,
    largest,
    plus,
    put,
    read,
    read_least,
    spread,
    times,
    total,
    write,
    zeros,
)
from student.matrices import F32, load, multiply, outer, padded, room_of, store, transpose

MINUS_INFINITY = -math.inf


def scratch_values(tokens: int, features: int) -> int:
    """Float32 of the scratch for rows of at most so many tokens."""
    rows = room_of(tokens)
    return rows * (9 * features + 2 * tokens)


@compiled
def _probabilities(scores: int, seen: int, scale: float) -> float:
    """Makes the first `seen` scores of a token probabilities; the logarithm of the sum of the exponentials."""
    most = spread(MINUS_INFINITY)
    for u in range(0, seen, LANES):
        most = larger(most, read_least(scores + F32 * u, seen - u))
    top = largest(most) * scale
    below, factor, sums = spread(-top), spread(scale), zeros()
    for u in range(0, seen, LANES):
        each = exponential(fused(read_least(scores + F32 * u, seen - u), factor, below))
        sums = plus(sums, each)
        write(each, scores + F32 * u, seen - u)
    whole = total(sums)
    part = spread(1 / whole)
    for u in range(0, seen, LANES):
        write(times(read(scores + F32 * u, seen - u), part), scores + F32 * u, seen - u)
    return top + math.log(whole)


@compiled
def _hide(scores: int, seen: int, stop: int) -> None:
    """Zeros where a token may not look."""
    for u in range(seen, stop):
        put(0.0, scores + F32 * u)


@kept
def attend(
    q: int, q_strides: Any, k: int, k_strides: Any, v: int, v_strides: Any, half: int, heads: int, groups: int,
    features: int, tokens: int, start: int, stops: Any, scale: float, out: int, logs: int, scratch: int,
) -> None:  # fmt: skip
    """out[N, H, E] of q [H, N, E], k and v [G, N, E], whose strides are of a head and of a token, in values.

    bfloat16 where `half` is 1, else float32. `tokens` is N; the rows are those from token `start` on whose last is
    before each of `stops`. `scale` is above 0. At `logs` [H, N] is left what `derive_attention` needs.
    """
    size = 2 if half else F32
    for stop in stops:
        rows = stop - start
        matrix = F32 * padded(rows) * features
        k_rows, k_columns, v_rows = scratch, scratch + matrix, scratch + 2 * matrix
        q_rows, seen_rows, p = scratch + 3 * matrix, scratch + 4 * matrix, scratch + 5 * matrix
        for group in range(groups):
            load(k + size * (group * k_strides[0] + start * k_strides[1]), half, rows, features, k_strides[1], k_rows)
            load(v + size * (group * v_strides[0] + start * v_strides[1]), half, rows, features, v_strides[1], v_rows)
            transpose(k_rows, rows, features, k_columns)
            for head in range(group * heads // groups, (group + 1) * heads // groups):
                at = q + size * (head * q_strides[0] + start * q_strides[1])
                load(at, half, rows, features, q_strides[1], q_rows)
                for s in range(0, rows, 4):
                    seen, four = min(s + 4, rows), F32 * s * features
                    line = p + F32 * s * rows
                    multiply(q_rows + four, features, 4, features, k_columns, rows, seen, line, rows)
                    for t in range(s, seen):
                        log = _probabilities(p + F32 * t * rows, t + 1, scale)
                        put(log, logs + F32 * (head * tokens + start + t))
                        _hide(p + F32 * t * rows, t + 1, seen)
                    multiply(line, rows, 4, seen, v_rows, features, features, seen_rows + four, features)
                to = out + size * (start * heads + head) * features
                store(seen_rows, rows, features, to, half, heads * features)
        start = stop


@compiled
def _derive_scores(p: int, dp: int, seen: int, scale: float, log: float) -> None:
    """From a token's scores its probabilities, and from the derivatives by these those by the scores."""
    factor, below, sums = spread(scale), spread(-log), zeros()
    for u in range(0, seen, LANES):
        each = exponential(fused(read_least(p + F32 * u, seen - u), factor, below))
        sums = fused(each, read(dp + F32 * u, seen - u), sums)
        write(each, p + F32 * u, seen - u)
    mean = spread(-total(sums))
    for u in range(0, seen, LANES):
        apart = plus(read(dp + F32 * u, seen - u), mean)
        write(times(times(read(p + F32 * u, seen - u), apart), factor), dp + F32 * u, seen - u)


@kept
def derive_attention(
    q: int, q_strides: Any, k: int, k_strides: Any, v: int, v_strides: Any, half: int, heads: int, groups: int,
    features: int, tokens: int, start: int, stops: Any, scale: float, g: int, g_strides: Any, logs: int, dq: int,
    dk: int, dv: int, scratch: int,
) -> None:  # fmt: skip
    """dq [H, N, E], dk and dv [G, N, E] from g, the derivatives by what `attend` gave; all else is as there."""
    size = 2 if half else F32
    for stop in stops:
        rows = stop - start
        matrix = F32 * padded(rows) * features
        k_rows, k_columns, v_columns, q_rows = scratch, scratch + matrix, scratch + 2 * matrix, scratch + 3 * matrix
        g_rows, dq_rows, dk_rows = q_rows + matrix, q_rows + 2 * matrix, q_rows + 3 * matrix
        dv_rows, p = dk_rows + matrix, dk_rows + 2 * matrix
        dp = p + F32 * padded(rows) * rows
        for group in range(groups):
            load(v + size * (group * v_strides[0] + start * v_strides[1]), half, rows, features, v_strides[1], k_rows)
            transpose(k_rows, rows, features, v_columns)
            load(k + size * (group * k_strides[0] + start * k_strides[1]), half, rows, features, k_strides[1], k_rows)
            transpose(k_rows, rows, features, k_columns)
            first = group * heads // groups
            for head in range(first, (group + 1) * heads // groups):
                at = q + size * (head * q_strides[0] + start * q_strides[1])
                load(at, half, rows, features, q_strides[1], q_rows)
                at = g + size * (head * g_strides[0] + start * g_strides[1])
                load(at, half, rows, features, g_strides[1], g_rows)
                for s in range(0, rows, 4):
                    seen, four, line = min(s + 4, rows), F32 * s * features, F32 * s * rows
                    multiply(q_rows + four, features, 4, features, k_columns, rows, seen, p + line, rows)
                    multiply(g_rows + four, features, 4, features, v_columns, rows, seen, dp + line, rows)
                    for t in range(s, seen):
                        line_t = F32 * t * rows
                        log = get(logs + F32 * (head * tokens + start + t))
                        _derive_scores(p + line_t, dp + line_t, t + 1, scale, log)
                        _hide(p + line_t, t + 1, seen)
                        _hide(dp + line_t, t + 1, seen)
                    multiply(dp + line, rows, 4, seen, k_rows, features, features, dq_rows + four, features)
                for u in range(0, rows, 4):
                    # Only tokens from u on look at it.
                    four, corner, few = F32 * u * features, F32 * (u * rows + u), min(4, rows - u)
                    beta = 1 if head > first else 0
                    outer(p + corner, rows, few, g_rows + four, rows - u, features, dv_rows + four, beta)
                    outer(dp + corner, rows, few, q_rows + four, rows - u, features, dk_rows + four, beta)
                store(dq_rows, rows, features, dq + size * (head * tokens + start) * features, half, features)
            to = size * (group * tokens + start) * features
            store(dk_rows, rows, features, dk + to, half, features)
            store(dv_rows, rows, features, dv + to, half, features)
        start = stop
