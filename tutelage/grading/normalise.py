"""The normal form of an answer, by SQuAD 1.1's rules: case, punctuation, articles and spaces do not count.

Nor does what nobody sees: soft hyphens, zero-width spaces and direction marks, which come along when text is copied,
would make a right answer wrong for good.
"""

from __future__ import annotations

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def visible(text: str) -> str:
    """Without control and format characters; spaces and ends of lines stay."""
    if text.isprintable():
        return text
    return "".join(character for character in text if character.isprintable() or character.isspace())


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words parted by one space."""
    return " ".join(_ARTICLES.sub(" ", visible(text).lower().translate(_PUNCTUATION)).split())
