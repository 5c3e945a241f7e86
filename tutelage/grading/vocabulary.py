"""The words that the lenient grader knows, read once from the YAML file beside this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import yaml


@dataclass(frozen=True)
class Vocabulary:
    """All words are lower case and without accents."""

    stop_words: frozenset[str]
    titles: frozenset[str]
    negations: frozenset[str]
    small_numbers: Mapping[str, int]
    """Value of a number word below a hundred, ordinals too."""
    months: tuple[str, ...]
    units: Mapping[str, str]
    """Unit by its abbreviation."""
    abbreviations: Mapping[str, str]
    phrases: Mapping[str, str]
    """Short form of several words, longest first."""


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """The vocabulary that comes with the package."""
    stored = yaml.safe_load((files("tutelage.grading") / "vocabulary.yaml").read_text(encoding="utf-8"))
    numbers = {name: words.split() for name, words in stored["numbers"].items()}
    return Vocabulary(
        stop_words=frozenset(stored["stop_words"].split()),
        titles=frozenset(stored["titles"].split()),
        negations=frozenset(stored["negations"].split()),
        small_numbers={
            **{word: value for name in ("units", "unit_ordinals") for value, word in enumerate(numbers[name])},
            **{word: 10 * value for name in ("tens", "ten_ordinals") for value, word in enumerate(numbers[name], 2)},
            "dozen": 12,
        },
        months=tuple(stored["months"].split()),
        units=stored["units"],
        abbreviations=stored["abbreviations"],
        phrases=dict(sorted(stored["phrases"].items(), key=lambda item: -len(item[0]))),
    )
