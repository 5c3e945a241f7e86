"""Runs of about as many tokens each, and calls side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from student.shares import GRAIN, shares, side_by_side


@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=20), threads=st.integers(1, 8))
def test_shares_are_all_rows_once_in_order_and_none_is_much_larger(lengths: list[int], threads: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = shares(lengths)
    finally:
        torch.set_num_threads(before)
    assert [place for first, last in found for place in range(first, last)] == list(range(len(lengths)))
    assert all(first < last for first, last in found)
    assert len(found) <= max(1, min(threads, sum(lengths) // GRAIN))
    even = sum(lengths) / max(1, min(threads, len(lengths), sum(lengths) // GRAIN))
    assert all(sum(lengths[first:last]) <= even + max(lengths) for first, last in found)


def test_where_one_call_cannot_be_begun_those_that_were_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    class Full:
        """A pool whose second thread cannot be started."""

        def submit(self, call: Callable[[], None]) -> Future[None]:
            if begun.is_set():
                raise RuntimeError("can't start new thread")
            begun.set()
            future: Future[None] = Future()

            def work() -> None:
                call()
                future.set_result(None)

            threading.Timer(0.2, work).start()
            return future

    monkeypatch.setattr("student.shares._pool", Full)
    with pytest.raises(RuntimeError, match="can't start"):
        side_by_side([lambda: None, ended.set, lambda: None])
    assert ended.is_set()


def test_calls_are_side_by_side_and_the_first_error_is_raised_after_all_have_ended() -> None:
    met, ended = threading.Barrier(3), []

    def call(place: int) -> None:
        met.wait(timeout=30)
        ended.append(place)
        if place:
            raise ValueError(f"call {place}")

    with pytest.raises(ValueError, match="call 1"):
        side_by_side([lambda: call(0), lambda: call(1), lambda: call(2)])
    assert sorted(ended) == [0, 1, 2]
