"""Parts that installed packages add, by Python entry points: name, group and object, loaded when first asked for.

A package names its parts in its `pyproject.toml`, such as `[project.entry-points."tutelage.algorithms"]`. Nothing is
loaded until its name is used, so that a broken package breaks only what uses it.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

from tutelage.domain.errors import PreconditionFailed

ALGORITHMS = "tutelage.algorithms"
"""Ways to learn from rewards: objects or classes of `teacher.algorithm.Algorithm`."""


def extension_names(group: str) -> tuple[str, ...]:
    """Names that installed packages add to a group, sorted."""
    return tuple(sorted({point.name for point in metadata.entry_points(group=group)}))


def load_extension(group: str, name: str) -> Any:
    """The object behind a name of `extension_names`; PreconditionFailed says which package fails to give it."""
    points = list(metadata.entry_points(group=group, name=name))
    # The same distribution may be found twice on the path; two different objects are somebody's mistake.
    if len({point.value for point in points}) != 1:
        found = ", ".join(sorted(f"{point.dist.name if point.dist else '?'} ({point.value})" for point in points))
        raise PreconditionFailed(f"{group} {name!r} must be given by one package, not by: {found or 'none'}")
    point = points[0]
    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist else "an installed package"
        raise PreconditionFailed(
            f"{group} {name!r} of {package} does not load: {type(error).__name__}: {error}"
        ) from error
