"""Formats that installed packages add to those of this package."""

from __future__ import annotations

from teacher.formats import builtin_formats, check_format
from tutelage.domain.errors import PreconditionFailed
from tutelage.domain.policy import Format
from tutelage.extensions import FORMATS, Extended


def all_formats() -> tuple[Format, ...]:
    """Every format by name, this package's first; PreconditionFailed or InvalidInput for a package that is broken."""
    known: Extended[Format] = Extended({item.name: item for item in builtin_formats()}, FORMATS)
    for name, item in known.items():
        if not isinstance(item, Format) or item.name != name:
            raise PreconditionFailed(f"format {name!r} must be a Format of that name, not {str(item)[:200]}")
        check_format(item, f"{FORMATS}.{name}")
    return tuple(known.values())
