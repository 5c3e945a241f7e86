"""Where all that a pass's adapters have in one family of projections lies, as the compiled products read it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from student.bank_adapter import BankAdapter, Joint
from student.bank_products import BETA
from student.matrices import room_of
from student.shares import shares

Table = np.ndarray[Any, np.dtype[np.int64]]
Scalings = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, eq=False)
class Lines:
    """A line for each adapter's part in a stretch."""

    table: Table
    """Columns as bank_products names them."""
    scalings: Scalings
    adapters: tuple[BankAdapter, ...]
    """Of each line; held, because their addresses are in the table."""
    inner: int
    """Values of all first products."""
    most_ranks: int
    """Of the adapters of one stretch together."""
    stretches: tuple[tuple[int, int], ...]
    """Tokens and lines of each."""

    @classmethod
    def of(cls, met: Sequence[tuple[int, int, Sequence[tuple[BankAdapter, Joint]]]], names: tuple[str, ...]) -> Lines:
        """From each stretch's first token, the one behind its last and its adapters' parts; `names` of the family."""
        table, adapters, inner = [], [], 0
        for start, stop, joints in met:
            for adapter, joint in joints:
                table.append((start, stop, inner, 0, adapter.rank, *joint.told(names)))
                adapters.append(adapter)
                inner += room_of(stop - start) * len(joint.a_JI)
        most_ranks = max(sum(len(joint.a_JI) for _, joint in joints) for _, _, joints in met)
        scalings = np.array([adapter.scaling for adapter in adapters], dtype=np.float32)
        stretches = tuple((stop - start, len(joints)) for start, stop, joints in met)
        return cls(np.array(table, dtype=np.int64), scalings, tuple(adapters), inner, most_ranks, stretches)

    def shares(self) -> list[tuple[Table, Scalings]]:
        """Lines of whole stretches, for a thread each."""
        trained = [adapter for adapter in self.adapters if adapter.grad_P is not None]
        if len(set(trained)) < len(trained):
            # Two threads would write one gradient.
            return [(self.table, self.scalings)]
        lines = [0, *itertools.accumulate(count for _, count in self.stretches)]
        return [
            (self.table[lines[first] : lines[last]], self.scalings[lines[first] : lines[last]])
            for first, last in shares([tokens for tokens, _ in self.stretches])
        ]

    def begin(self, family: str) -> None:
        """Before gradients are written: the first product of a step replaces what lies there."""
        self.table[:, BETA] = [adapter.beta(family) for adapter in self.adapters]
