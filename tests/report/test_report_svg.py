"""Axes have round numbers that enclose the data, and plots are well-formed XML whatever the labels hold."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.bootstrap import Interval
from orchestrator.report.svg import BarRow, DotRow, Series, dot_rows, interval_plot, stacked_bars, tick_label, ticks

LABEL = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=40)
VALUE = st.floats(-1e6, 1e6)


@given(VALUE, VALUE)
def test_ticks_enclose_the_range_and_are_few(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    marks = ticks(low, high)
    slack = 1e-6 * (marks[-1] - marks[0])
    assert marks[0] <= low + slack
    assert marks[-1] >= high - slack
    assert 2 <= len(marks) <= 12
    assert all(later > earlier for earlier, later in itertools.pairwise(marks))


def test_ticks_are_round_and_labels_short() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert [tick_label(mark, 0.2) for mark in (-0.2, 0.0, 0.4)] == ["−0.2", "0.0", "0.4"]
    assert tick_label(200.0, 100.0) == "200"
    with pytest.raises(ValueError, match="finite"):
        ticks(math.nan, 1.0)


@given(LABEL, st.lists(VALUE, max_size=5))
def test_plots_are_well_formed(label: str, values: list[float]) -> None:
    points = tuple(Interval(value, value - 1, value + 1, 3) for value in values)
    plots = [
        dot_rows([DotRow(label, ((0, tuple(values)),))], [label], x_label=label, title=label),
        stacked_bars([BarRow(label, tuple(abs(value) for value in values))], [label] * 5, x_label=label, title=label),
        interval_plot([label] * max(1, len(values)), [Series(label, points)], x_label=label, y_label=label),
    ]
    for plot in plots:
        if plot:
            assert ET.fromstring(str(plot)).tag == "svg"


def test_nothing_to_plot_gives_nothing() -> None:
    assert dot_rows([], [], x_label="x", title="t") == ""
    assert interval_plot(["1"], [Series("s", (None,))], x_label="x", y_label="y") == ""
    assert stacked_bars([BarRow("r", (0.0,))], ["n"], x_label="x", title="t") == ""
