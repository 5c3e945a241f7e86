"""Parts that installed packages add, by Python entry points: name, group and object, loaded when first asked for.

A package names its parts in its `pyproject.toml`, such as `[project.entry-points."tutelage.algorithms"]`. A part is
loaded when its name is used, and a format when a teacher is asked which it has; a broken package breaks only what uses
it. Names of this project win.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, TypeVar

from tutelage.domain.errors import PreconditionFailed

ALGORITHMS = "tutelage.algorithms"
"""Ways to learn from rewards: objects or classes of `teacher.algorithm.Algorithm`."""
FORMATS = "tutelage.formats"
"""Formats of self-edits: objects of `tutelage.domain.policy.Format`, named as the entry point."""
GRADERS = "tutelage.graders"
"""Graders of answers: functions from (answer, gold answers, question) to a score of 0 to 1."""

REWARDS = "tutelage.rewards"
"""Formulas of rewards: functions from a report's parts (by name, as they are stored) to a reward."""
SELECTION_RULES = "tutelage.selection_rules"
"""What is worth learning from: functions as in `teacher.selection.RULES`."""

ValueT = TypeVar("ValueT")


@functools.cache
def _points(group: str) -> tuple[metadata.EntryPoint, ...]:
    # Reading what is installed costs a tenth of a second, and does not change under a running process.
    return tuple(metadata.entry_points(group=group))


def extension_names(group: str) -> tuple[str, ...]:
    """Names that installed packages add to a group, sorted."""
    return tuple(sorted({point.name for point in _points(group)}))


def load_extension(group: str, name: str) -> Any:
    """The object behind a name of `extension_names`; PreconditionFailed says which package fails to give it."""
    points = [point for point in _points(group) if point.name == name]
    # The same distribution may be found twice on the path; two different objects are somebody's mistake.
    if len({point.value for point in points}) != 1:
        found = ", ".join(sorted(f"{_package(point)} ({point.value})" for point in points))
        raise PreconditionFailed(f"{group} {name!r} must be given by one package, not by: {found or 'none'}")
    try:
        return points[0].load()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PreconditionFailed(f"{group} {name!r} of {_package(points[0])} does not load: {reason}") from error


def why_unusable(parts: Mapping[str, object], name: str) -> str:
    """For people: why the function of a name that is there cannot be called; empty where it can be."""
    try:
        found = parts[name]
    except PreconditionFailed as error:
        return str(error)
    return "" if callable(found) else f"{name!r} is a {type(found).__name__}, not a function"


def _package(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else "an installed package"


class Extended(Mapping[str, ValueT]):
    """Parts of this project by name, and those that packages add to a group after them."""

    def __init__(self, built_in: Mapping[str, ValueT], group: str) -> None:
        self._built_in = built_in
        self._group = group

    def __getitem__(self, name: str) -> ValueT:
        if name in self._built_in:
            return self._built_in[name]
        if name not in extension_names(self._group):
            raise KeyError(name)
        found: ValueT = load_extension(self._group, name)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._built_in or name in extension_names(self._group)

    def __iter__(self) -> Iterator[str]:
        yield from self._built_in
        yield from (name for name in extension_names(self._group) if name not in self._built_in)

    def __len__(self) -> int:
        return sum(1 for _ in self)
