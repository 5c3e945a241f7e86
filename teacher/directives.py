"""The JSON that a completion begins with: how the writer wants its notes to be trained on, and how many there are.

What a model writes is untrusted input, so the object is parsed strictly; where it stands is not, for chat models greet
first, fence it and print it over several lines. Only its shape is judged here (known keys, types, positive
numbers); whether a value is allowed is the student's to say. `SCHEMA` is narrower: what a writer whose
sampling is held to it (`teacher.constrained`) chooses from, all of it within the bounds of a student as it comes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.domain.self_edit import Directives, LossMask, Rejection, RejectionReason

_ALLOWED = {
    "learning_rate": "a number above 0",
    "epochs": "a whole number of 1 to 2147483647",
    "rank": "a whole number of 1 to 2147483647",
    "loss_mask": "one of " + ", ".join(mask.value for mask in LossMask),
    "notes": "a whole number of 1 to 2147483647",
}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "learning_rate": {"enum": [0.0001, 0.0002, 0.0005, 0.001, 0.002]},
        "epochs": {"type": "integer", "minimum": 1, "maximum": 20},
        "rank": {"enum": [4, 8, 16, 32, 64]},
        "loss_mask": {"enum": [mask.value for mask in LossMask]},
        "notes": {"type": "integer", "minimum": 1, "maximum": 24},
    },
    "required": ["learning_rate", "epochs", "rank", "loss_mask", "notes"],
    "additionalProperties": False,
}
"""JSON schema of the line, in the order in which its keys are written."""


def schema_of(max_documents: int) -> Mapping[str, Any]:
    """The schema for a format that keeps so many notes: it may be asked for all of them, however many."""
    properties = SCHEMA["properties"]
    notes = {**properties["notes"], "maximum": max(properties["notes"]["maximum"], max_documents)}
    return {**SCHEMA, "properties": {**properties, "notes": notes}}


@dataclass(frozen=True)
class DirectiveLine:
    """What the line says: directives to the student, and the number of notes that the writer wants kept."""

    directives: Directives
    notes: int | None = None


_OBJECT_FIRST = "a JSON object on the first line"
_OBJECT = re.compile(r"(?P<before>(?:[^\n{]*\n)*?)[ \t]*\{")
"""A line that begins with an object, and those before it."""
_FENCE = re.compile(r"[ \t]*```\w*[ \t]*(?:\n|$)")
_PREAMBLE = 4
"""Most lines before the object, a fence among them; empty ones are not counted."""


class _Refused(ValueError):
    """JSON that Python would take and JSON does not: NaN, infinities, a key given twice."""


def parse_directives(text: str) -> tuple[DirectiveLine | Rejection, str, int]:
    """Directives from the JSON object that a completion begins with, what follows it, and the lines before it.

    Or the rejection that names field, value and what is allowed. Never raises.
    """
    text = text.strip()
    first = text.partition("\n")[0].strip()
    begun = _OBJECT.match(text)
    preamble = [line for line in begun.group("before").split("\n") if line.strip()] if begun else []
    if begun is None or len(preamble) > _PREAMBLE:
        return rejected("directives", first, _OBJECT_FIRST), "", 0
    try:
        value, end = _DECODER.raw_decode(text, begun.end() - 1)
    except (ValueError, RecursionError):
        return rejected("directives", first, _OBJECT_FIRST), "", 0
    rest, _, body = text[end:].partition("\n")
    if rest.strip():
        return rejected("directives", first, _OBJECT_FIRST), "", 0
    if preamble and _FENCE.match(preamble[-1]):
        body = _FENCE.sub("", body.lstrip(), count=1) if _FENCE.match(body.lstrip()) else body
    return _directive_line(value), body, len(preamble)


def _directive_line(value: Mapping[str, Any]) -> DirectiveLine | Rejection:
    """Directives from a JSON object."""
    for key, item in value.items():
        if key not in _ALLOWED:
            return rejected(f"directives.{key}"[:200], item, "one of the keys " + ", ".join(_ALLOWED))
        if not _fits(key, item):
            return rejected(f"directives.{key}", item, _ALLOWED[key])
    directives = Directives(
        learning_rate=float(value["learning_rate"]) if "learning_rate" in value else None,
        epochs=value.get("epochs"),
        rank=value.get("rank"),
        loss_mask=LossMask(value["loss_mask"]) if "loss_mask" in value else None,
    )
    return DirectiveLine(directives, value.get("notes"))


def rejected(field: str, value: object, allowed: str) -> Rejection:
    """An unparsable edit, with the value shortened to 200 characters.

    JSON can spell halves of characters (`\\ud800`), which no message carries: they become question marks.
    """
    name, text = (each.encode("utf-8", "replace").decode("utf-8") for each in (field, _text(value)))
    return Rejection(RejectionReason.UNPARSABLE, name, text[:200], allowed, f"{name} must be {allowed}")


def _fits(key: str, item: object) -> bool:
    if key == "loss_mask":
        return isinstance(item, str) and item in {mask.value for mask in LossMask}
    # In Python a bool is an int; in a directive it is a mistake.
    if isinstance(item, bool):
        return False
    if key == "learning_rate":
        try:
            return isinstance(item, (int, float)) and math.isfinite(item) and item > 0
        except OverflowError:
            return False
    return isinstance(item, int) and 0 < item < 2**31


def _refuse_constant(name: str) -> Any:
    raise _Refused(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("a key is given twice")
    return found


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except (ValueError, RecursionError):
        return "a value that cannot be shown"
