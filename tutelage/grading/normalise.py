"""The normal form of an answer, by SQuAD 1.1's rules: case, punctuation, articles and spaces do not count.

Nor does what nobody sees: soft hyphens, zero-width spaces and direction marks, which come along when text is copied,
would make a right answer wrong for good.
"""

from __future__ import annotations

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


# Named one by one: what an interpreter calls printable differs from version to version, and a student grades alike on
# all of them. Zero-width joiners (U+200C, U+200D) stay: they part words of Persian and Indic scripts, and emoji.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"
)


def visible(text: str) -> str:
    """Without control characters, direction marks and spaces of no width; other spaces and ends of lines stay."""
    return _UNSEEN.sub("", text)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words parted by one space."""
    return " ".join(_ARTICLES.sub(" ", visible(text).lower().translate(_PUNCTUATION)).split())
