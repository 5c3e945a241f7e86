"""One JSON for one value, so that equal things have equal ids."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from enum import Enum


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = type(value).__name__
        # What equality passes over is no part of the value's id either.
        fields = {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value) if item.compare}
        # The type's name tells members of a union apart that share their fields.
        return {"type": name, **fields}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def canonical_json(value: object) -> str:
    """Sorted keys, no spaces, ASCII, floats as Python's shortest repr; NaN and infinities raise ValueError."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_hash(value: object) -> str:
    """Lower-case hex SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def derived_seed(*parts: object) -> int:
    """A seed of 0 to 2**31 - 1 from ids and numbers, such as (run seed, document, round, repeat)."""
    return int(content_hash(list(parts))[:16], 16) % 2**31


def as_floats(value: object, *names: str) -> None:
    """Makes whole numbers in the named fields of a frozen dataclass floats: 64 and 64.0 must have one id."""
    for name in names:
        given = getattr(value, name)
        if isinstance(given, int):
            object.__setattr__(value, name, float(given))
