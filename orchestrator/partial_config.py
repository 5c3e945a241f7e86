"""A run's settings as far as they can be read: what is wrong in some keys does not hide what is wrong in others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.run_config import RunConfig
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.settings import parse_settings
from tutelage.yaml_mapping import parse_mapping

PREFIX = "config."


@dataclass(frozen=True)
class ReadConfig:
    config: RunConfig | None
    """Of the keys that are right; None when nothing can be made of them."""
    wrong: tuple[FieldViolation, ...]
    left_out: frozenset[str]
    """Keys that are not in `config`, which has their defaults."""

    def of_what_was_read(self, found: Iterable[FieldViolation]) -> list[FieldViolation]:
        """Without what was found in the defaults of keys that were left out."""
        return [each for each in found if _key(each.field.removeprefix(PREFIX)) not in self.left_out]


def read_config(config_yaml: str) -> ReadConfig:
    """The settings, and every violation that reading all of them shows."""
    try:
        return ReadConfig(parse_settings(config_yaml, RunConfig), (), frozenset())
    except InvalidInput as error:
        wrong = tuple(FieldViolation(PREFIX + each.field, each.value, each.allowed) for each in error.violations)
        bad = frozenset(_key(each.field) for each in error.violations)
    try:
        rest = {name: value for name, value in parse_mapping(config_yaml).items() if str(name) not in bad}
        return ReadConfig(parse_settings(rest, RunConfig), wrong, bad)
    except InvalidInput:
        # What is missing now was left out by us; all that the keys themselves say was told.
        return ReadConfig(None, wrong, bad)


def _key(field: str) -> str:
    """The top key of a dotted field."""
    return re.split(r"[.\[]", field, maxsplit=1)[0]
