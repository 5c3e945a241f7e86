"""Formats that installed packages add to those of this package."""

from __future__ import annotations

import functools
import logging

from teacher.formats import builtin_formats, check_format
from tutelage.domain.errors import PreconditionFailed
from tutelage.domain.policy import Format
from tutelage.extensions import FORMATS, Extended
from tutelage.wire.policy import format_from_wire, format_to_wire

log = logging.getLogger(__name__)


@functools.cache
def all_formats() -> tuple[Format, ...]:
    """Every format by name, this package's first; without those of packages that are broken, of which the log tells."""
    own = builtin_formats()
    known: Extended[Format] = Extended({item.name: item for item in own}, FORMATS)
    added = []
    for name in list(known)[len(own) :]:
        try:
            added.append(_checked(name, known[name]))
        except Exception as error:
            # Whoever starts a run asks for all formats: one that is broken must not keep the others from them.
            log.error("format %r is left out: %s: %s", name, type(error).__name__, error)
    return (*own, *added)


def _checked(name: str, item: Format) -> Format:
    if not isinstance(item, Format) or item.name != name:
        raise PreconditionFailed(f"format {name!r} must be a Format of that name, not {str(item)[:200]}")
    check_format(item, f"{FORMATS}.{name}")
    # As who asks for it will read it.
    return format_from_wire(format_to_wire(item))
