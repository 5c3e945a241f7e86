"""An answer as a list of comparable terms: word stems and numbers, whatever their spelling.

Case, accents, punctuation, hyphens, number words, separators of thousands, units, ISO dates and a few everyday
abbreviations are brought to one form; the stems are Snowball's for English.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

import snowballstemmer

from tutelage.grading.normalise import visible
from tutelage.grading.number_words import number_at
from tutelage.grading.vocabulary import vocabulary

MAX_CHARACTERS = 4000
"""What stands after it is not read: no answer to a quiz is as long, and a runaway must not cost."""

_ISO_DATE = re.compile(r"\b(\d{4})-(\d{2})-(\d{2})\b")
_THOUSANDS = re.compile(r"(?<=\d)[,\u00a0\u202f'’](?=\d{3}(?!\d))")
_DOTTED = re.compile(r"\b(?:[a-z]\.){2,}")
_APOSTROPHE = re.compile(r"(?<=\w)['’]s\b|['’]")
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th)\b")
_GLUED = re.compile(r"(?<=\d)(?=[a-z%])|(?<=[a-z%])(?=\d)")
_SPACES = re.compile(r"[^\S\n]+")
_CLAUSE = re.compile(r"[.;:!?](?=\s|$)|\n|, |\bbut\b|\bhowever\b")
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+|[%$€£¥₹]")


class _Stemmers(threading.local):
    """A stemmer for each thread: it keeps the word under work in itself, and two threads would mix theirs."""

    def __init__(self) -> None:
        self.english = snowballstemmer.stemmer("english")


_stemmers = _Stemmers()


@dataclass(frozen=True)
class Term:
    """`text` is what is compared: a stem, or a number in its shortest form. `word` is what it was made from."""

    text: str
    word: str
    number: float | None = None
    clause: int = 0
    """Which clause of the text it stands in, counted from 0."""

    @property
    def content(self) -> bool:
        """Whether it tells something: neither a stop word nor a title."""
        known = vocabulary()
        return self.number is not None or not (self.word in known.stop_words or self.word in known.titles)


@lru_cache(maxsize=20_000)
def stem(word: str) -> str:
    """Snowball's English stem of a lower-case word."""
    return str(_stemmers.english.stemWord(word))


@lru_cache(maxsize=2_000)
def terms(text: str) -> tuple[Term, ...]:
    """The terms of a text in their order; a text without a letter, digit or sign of money has none."""
    flat = _ISO_DATE.sub(_spoken_date, plain(text[:MAX_CHARACTERS]))
    flat = _DOTTED.sub(lambda found: found.group().replace(".", ""), _THOUSANDS.sub("", flat))
    flat = _SPACES.sub(" ", _GLUED.sub(" ", _ORDINAL.sub(r"\1", _APOSTROPHE.sub("", flat))))
    for phrase, short in _phrases():
        flat = phrase.sub(short, flat)
    found: list[Term] = []
    for number, clause in enumerate(_CLAUSE.split(flat)):
        raw = _WORD.findall(clause)
        found += _numbered(
            [word for item in raw for word in vocabulary().abbreviations.get(item, item).split()], number
        )
    return tuple(found)


def plain(text: str) -> str:
    """Case-folded, without accents and what nobody sees, in Unicode's compatible form (² is 2)."""
    apart = unicodedata.normalize("NFKD", visible(text).casefold())
    return "".join(character for character in apart if not unicodedata.combining(character))


def shortest(number: float) -> str:
    """A number as text, the same for 64 and 64.0."""
    return str(int(number)) if number == int(number) else repr(number)


@lru_cache(maxsize=1)
def _phrases() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((re.compile(rf"\b{re.escape(phrase)}\b"), short) for phrase, short in vocabulary().phrases.items())


def _numbered(words: list[str], clause: int) -> list[Term]:
    units = vocabulary().units
    found: list[Term] = []
    place = 0
    while place < len(words):
        word = words[place]
        # Behind digits "k", "mn" and "bn" are scales.
        number = number_at([word, *(units.get(item, item) for item in words[place + 1 : place + 12])], 0)
        if number is not None:
            value, width = number
            found.append(Term(shortest(value), word, value, clause))
            place += width
            continue
        # A unit's short form is one only behind a number: "m" may be anything else.
        behind_number = bool(found) and found[-1].number is not None
        spelled = units.get(word, word) if behind_number or len(word) > 2 or word == "%" else word
        found += [Term(stem(item), item, clause=clause) for item in spelled.split()]
        place += 1
    return found


def _spoken_date(found: re.Match[str]) -> str:
    year, month, day = (int(part) for part in found.groups())
    return f"{day} {vocabulary().months[month - 1]} {year}" if 1 <= month <= 12 else found.group()
