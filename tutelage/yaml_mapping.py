"""YAML text into a mapping, with the place of every mistake named; a few lines never become more than memory holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from tutelage.domain.errors import InvalidInput


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads `1e-3` as a number and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else ""
            if name and name != "<<" and name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # What merges of merges name again and again is kept once, the last as in the mapping that is made of it.
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge" and len(value.value) > _MOST_MERGED:
                raise yaml.constructor.ConstructorError(
                    None, None, f"<< merges more than {_MOST_MERGED} mappings or keys", key.start_mark
                )
        super().flatten_mapping(node)
        kept = {
            (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key): (key, v) for key, v in node.value
        }
        node.value = list(kept.values())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            # At once with all that is in it, which shows an alias within what it names.
            made = super().construct_object(node, deep=True)
            if isinstance(made, int):
                str(made)  # ValueError where Python writes no number that long, not even in a message about it.
            return made
        except ValueError as error:
            # What looks like a number or a date and is none: 0x_, 2024-13-45, a number of thousands of digits.
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


# YAML 1.1 wants a dot in a float; people write 1e-3.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


_MOST_MERGED = 1000
_MOST_ENTRIES = 1_000_000
"""A few lines of aliases of aliases can name more than any memory holds."""


def parse_mapping(text: str, source: str = "") -> dict[str, Any]:
    """The mapping in a YAML text; InvalidInput says where it is not well-formed. Empty text is an empty mapping."""
    prefix = f"{source}: " if source else ""
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "document"
        problem = getattr(error, "problem", None) or "not YAML"
        raise InvalidInput.of(f"{prefix}{where}", problem, "well-formed YAML") from None
    except RecursionError:
        raise InvalidInput.of(f"{prefix}document", "nested too deeply", "well-formed YAML") from None
    if content is None:
        return {}
    if _entries(content, {}) > _MOST_ENTRIES:
        raise InvalidInput.of(f"{prefix}document", "aliases of aliases", f"at most {_MOST_ENTRIES:,} entries in all")
    if not isinstance(content, Mapping):
        raise InvalidInput.of(f"{prefix}document", type(content).__name__, "a mapping of settings")
    return dict(content)


def _entries(value: Any, known: dict[int, int]) -> int:
    """How many entries a value has with all that is in it, where what an alias names counts each time."""
    if id(value) not in known:
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
        known[id(value)] = 1 + sum(_entries(each, known) for each in inner)
    return known[id(value)]
