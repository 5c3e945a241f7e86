"""Small plots as inline SVG, drawn by pure functions; colours come from the page's CSS classes (`s0`, `s1`, ...)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from orchestrator.report.bootstrap import Interval

_WIDTH = 1000.0


@dataclass(frozen=True)
class Series:
    """Points with intervals over the categories of the x axis; None leaves a gap."""

    name: str
    points: tuple[Interval | None, ...]


@dataclass(frozen=True)
class DotRow:
    label: str
    values: tuple[tuple[int, tuple[float, ...]], ...]
    """(series index, values): small dots for each, a bar at their mean."""


@dataclass(frozen=True)
class BarRow:
    label: str
    parts: tuple[float, ...]
    """Lengths of the stacked parts, in the order of the names."""


@dataclass(frozen=True)
class IntervalRow:
    label: str
    interval: Interval


def _element(tag: str, body: str = "", **attributes: object) -> Markup:
    written = Markup("").join(
        Markup(' {}="{}"').format(
            name.rstrip("_").replace("_", "-"), f"{value:.2f}" if isinstance(value, float) else value
        )
        for name, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, escape(body))


def _text(x: float, y: float, body: str, css: str = "tick", anchor: str = "middle") -> Markup:
    return _element("text", body, x=x, y=y, class_=css, text_anchor=anchor)


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    return _element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=css)


def _figure(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    body = _element("title", title) + Markup("").join(parts)
    return _element("svg", body, viewBox=f"0 0 {width:.0f} {height:.0f}", role="img", style=f"max-width:{width:.0f}px")


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) from at or below `low` to at or above `high`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("an axis needs finite ends")
    # A span too small for the numbers themselves would step by nothing.
    if high - low <= max(abs(low), abs(high), 1e-9) * 1e-9:
        low, high = low - max(abs(low), 1.0) * 0.5, high + max(abs(high), 1.0) * 0.5
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if raw <= power * factor * (1 + 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_label(value: float, step: float) -> str:
    """As many decimals as the step needs; a true minus sign."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    text = f"{abs(value):.{decimals}f}"
    return f"−{text}" if value < 0 and float(text) != 0 else text


def _legend(names: Sequence[str], x: float, y: float, css: str = "s") -> list[Markup]:
    parts: list[Markup] = []
    for index, name in enumerate(names):
        parts.append(_element("rect", x=x, y=y - 9, width=11, height=11, rx=2, class_=f"{css}{index % 6} fill"))
        parts.append(_text(x + 17, y, name, "legend", "start"))
        x += 17 + 7.0 * len(name) + 22
    return parts


def interval_plot(
    categories: Sequence[str], series: Sequence[Series], *, x_label: str, y_label: str, width: float = _WIDTH
) -> Markup:
    """Means joined by lines, with whiskers for their intervals, over categories; a `width` of half fits half a page."""
    known = [point for item in series for point in item.points if point is not None]
    if not known:
        return Markup("")
    height, left, right, top, bottom = 360.0, 74.0, 20.0, 44.0, 56.0
    marks = ticks(min(0.0, *(point.low for point in known)), max(0.0, *(point.high for point in known)))
    low, high, step = marks[0], marks[-1], marks[1] - marks[0]

    def y_of(value: float) -> float:
        return top + (high - value) / (high - low) * (height - top - bottom)

    slot = (width - left - right) / len(categories)
    parts = _legend([item.name for item in series], left, 22.0)
    for mark in marks:
        parts.append(_line(left, y_of(mark), width - right, y_of(mark), "zero" if abs(mark) < step / 2 else "grid"))
        parts.append(_text(left - 10, y_of(mark) + 4, tick_label(mark, step), "tick", "end"))
    for index, category in enumerate(categories):
        parts.append(_text(left + slot * (index + 0.5), height - bottom + 20, category))
    for number, item in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * min(26.0, slot / 4)
        places = [
            (left + slot * (index + 0.5) + shift, point) for index, point in enumerate(item.points) if point is not None
        ]
        path = " ".join(f"{x:.1f},{y_of(point.mean):.1f}" for x, point in places)
        parts.append(_element("polyline", points=path, class_=f"s{number} join"))
        for x, point in places:
            parts.append(_line(x, y_of(point.low), x, y_of(point.high), f"s{number} whisker"))
            for end in (point.low, point.high):
                parts.append(_line(x - 6, y_of(end), x + 6, y_of(end), f"s{number} whisker"))
            label = f"{item.name}: {point.mean:.3f} [{point.low:.3f}, {point.high:.3f}], {point.count} documents"
            dot = _element(
                "circle", _element("title", label), cx=x, cy=y_of(point.mean), r=5.5, class_=f"s{number} fill dot"
            )
            parts.append(dot)
    middle = (top + height - bottom) / 2
    parts.append(_text(left + (width - left - right) / 2, height - 12, x_label, "axis"))
    parts.append(
        _element(
            "text", y_label, transform=f"translate(18 {middle:.0f}) rotate(-90)", class_="axis", text_anchor="middle"
        )
    )
    return _figure(width, height, f"{y_label} by {x_label}", parts)


def dot_rows(rows: Sequence[DotRow], series: Sequence[str], *, x_label: str, title: str) -> Markup:
    """A row for each thing: its values as dots, their mean as an upright bar, series one below the other."""
    known = [value for row in rows for _, values in row.values for value in values]
    if not known:
        return Markup("")
    width, left, right, top, bottom = _WIDTH, 250.0, 24.0, 42.0, 52.0
    row_height = 13.0 * max(1, len(series)) + 9
    height = top + row_height * len(rows) + bottom
    marks = ticks(min(0.0, *known), max(0.0, *known), about=6)
    low, high, step = marks[0], marks[-1], marks[1] - marks[0]

    def x_of(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = _legend(series, left, 20.0)
    for mark in marks:
        parts.append(_line(x_of(mark), top, x_of(mark), height - bottom, "zero" if abs(mark) < step / 2 else "grid"))
        parts.append(_text(x_of(mark), height - bottom + 18, tick_label(mark, step)))
    for index, row in enumerate(rows):
        y_top = top + row_height * index
        if index:
            parts.append(_line(left, y_top, width - right, y_top, "rule"))
        label = row.label if len(row.label) <= 34 else row.label[:33] + "…"
        name = _element(
            "text",
            _element("title", row.label) + escape(label),
            x=left - 12,
            y=y_top + row_height / 2 + 4,
            class_="row",
            text_anchor="end",
        )
        parts.append(name)
        for number, values in row.values:
            y = y_top + 4.5 + 13.0 * number + 6.5
            for value in values:
                dot = _element("title", f"{row.label}, {series[number]}: {value:.3f}")
                parts.append(_element("circle", dot, cx=x_of(value), cy=y, r=4, class_=f"s{number % 6} fill faint"))
            if values:
                mean = sum(values) / len(values)
                parts.append(_line(x_of(mean), y - 6.5, x_of(mean), y + 6.5, f"s{number % 6} mean"))
    parts.append(_text(left + (width - left - right) / 2, height - 10, x_label, "axis"))
    return _figure(width, height, title, parts)


def stacked_bars(rows: Sequence[BarRow], names: Sequence[str], *, x_label: str, title: str) -> Markup:
    """One bar a row, of parts laid end to end, with the row's total at its end."""
    totals = [sum(row.parts) for row in rows]
    if not totals or max(totals) <= 0:
        return Markup("")
    width, left, right, top, bottom, row_height = _WIDTH, 92.0, 74.0, 44.0, 52.0, 38.0
    height = top + row_height * len(rows) + bottom
    marks = ticks(0.0, max(totals), about=6)
    step = marks[1] - marks[0]

    def x_of(value: float) -> float:
        return left + value / marks[-1] * (width - left - right)

    parts = _legend(names, left, 20.0, "p")
    for mark in marks:
        parts.append(_line(x_of(mark), top, x_of(mark), height - bottom, "grid" if mark else "zero"))
        parts.append(_text(x_of(mark), height - bottom + 18, tick_label(mark, step)))
    for index, (row, total) in enumerate(zip(rows, totals, strict=True)):
        y = top + row_height * index + 7
        parts.append(_text(left - 12, y + 16, row.label, "row", "end"))
        start = 0.0
        for number, part in enumerate(row.parts):
            if part > 0:
                tip = _element("title", f"{row.label}, {names[number]}: {part:.1f}")
                length = x_of(start + part) - x_of(start)
                parts.append(
                    _element(
                        "rect",
                        tip,
                        x=x_of(start),
                        y=y,
                        width=length,
                        height=row_height - 14,
                        class_=f"p{number % 6} fill bar",
                    )
                )
                start += part
        parts.append(_text(x_of(total) + 8, y + 16, f"{total:,.0f}", "tick", "start"))
    parts.append(_text(left + (width - left - right) / 2, height - 10, x_label, "axis"))
    return _figure(width, height, title, parts)


def interval_rows(rows: Sequence[IntervalRow], *, x_label: str, title: str) -> Markup:
    """A row for each interval: its mean as a dot on a bar from end to end, beside a line at zero."""
    if not rows:
        return Markup("")
    width, left, right, top, bottom, row_height = _WIDTH, 300.0, 24.0, 14.0, 52.0, 30.0
    height = top + row_height * len(rows) + bottom
    lows, highs = [row.interval.low for row in rows], [row.interval.high for row in rows]
    marks = ticks(min(0.0, *lows), max(0.0, *highs), about=6)
    low, high, step = marks[0], marks[-1], marks[1] - marks[0]

    def x_of(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts: list[Markup] = []
    for mark in marks:
        parts.append(_line(x_of(mark), top, x_of(mark), height - bottom, "zero" if abs(mark) < step / 2 else "grid"))
        parts.append(_text(x_of(mark), height - bottom + 18, tick_label(mark, step)))
    for index, row in enumerate(rows):
        y, item = top + row_height * (index + 0.5), row.interval
        colour = "s0" if not item.excludes_zero else "s2" if item.low > 0 else "s1"
        label = row.label if len(row.label) <= 42 else row.label[:41] + "…"
        parts.append(_text(left - 12, y + 4, label, "row", "end"))
        parts.append(_line(x_of(item.low), y, x_of(item.high), y, f"{colour} whisker"))
        tip = _element("title", f"{row.label}: {item.mean:.3f} [{item.low:.3f}, {item.high:.3f}]")
        parts.append(_element("circle", tip, cx=x_of(item.mean), cy=y, r=5.5, class_=f"{colour} fill dot"))
    parts.append(_text(left + (width - left - right) / 2, height - 10, x_label, "axis"))
    return _figure(width, height, title, parts)
