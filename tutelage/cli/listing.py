"""How lists are shown: a table for people, JSON for programs, from the same rows."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import typer

BETWEEN = 3
"""Blanks between two columns."""
LEAST = 8
"""To which a column is narrowed before another one has its words broken, too."""
WIDEST = 10_000
"""Of a table that is no terminal's."""


def plain(value: Any) -> Any:
    """A value that JSON can hold, from dataclasses, enums, times and paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    return value


def print_json(value: Any) -> None:
    """Indented JSON on standard output."""
    typer.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str, title: str | None = None) -> None:
    """A table on standard output, or the sentence that says that there is nothing."""
    if not rows:
        typer.echo(empty)
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # Whoever reads a pipe or a file wants a line a row.
        console.width = WIDEST
    table = Table(box=SIMPLE, pad_edge=False, title=title, title_justify="left")
    for column, width in zip(columns, _widths([columns, *cells], console.width), strict=True):
        table.add_column(column, overflow="fold", width=width)
    for row in cells:
        table.add_row(*map(Text, row))
    console.print(table, soft_wrap=console.width == WIDEST)


def _widths(rows: Sequence[Sequence[str]], room: int) -> list[int]:
    """Of the columns: as wide as their cells where there is room; else words, such as versions, stay in one piece.

    The first column, which names the row and is copied into the next command, is always whole. Where the words of the
    others do not fit either, as few as possible are broken.
    """
    from rich.cells import cell_len

    columns = list(zip(*rows, strict=True))
    whole = [max(map(cell_len, cells)) for cells in columns]
    least = [max((cell_len(word) for cell in cells for word in cell.split()), default=0) for cells in columns]
    widths = [whole[0], *least[1:]]
    left = room - sum(widths) - BETWEEN * len(columns) + 1
    for number in sorted(range(1, len(widths)), key=lambda number: -widths[number]):
        cut = min(max(-left, 0), max(widths[number] - LEAST, 0))
        widths[number] -= cut
        left += cut
    while left < 0 and max(widths[1:], default=0) > 1:
        widths[max(range(1, len(widths)), key=widths.__getitem__)] -= 1
        left += 1
    while left > 0 and widths != whole:
        number = max(range(len(widths)), key=lambda number: whole[number] - widths[number])
        widths[number] += 1
        left -= 1
    return widths
