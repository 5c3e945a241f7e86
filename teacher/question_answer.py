"""Question and answer pairs from a completion, in whichever of the usual forms a model falls into.

Understood: `Question:`/`Answer:` and `Q:`/`A:` (also numbered, bulleted or bold) on lines of their own or in one line,
and lists of questions (`1. Who ...?`) whose answer follows the question mark or stands on the next lines.
"""

from __future__ import annotations

import re

MAX_PAIR_CHARACTERS = 4000
"""A longer pair is no flash card but a runaway; it is left out."""

_LEAD = r"[ \t>#*_•–-]{0,12}(?:\(?\d{1,3}[.):][ \t*_]{0,4})?"
_QUESTION = re.compile(rf"^{_LEAD}(?:question|q)[ \t]?\d{{0,3}}[*_]{{0,2}}[ \t]?[:.)][ \t*_]*", re.IGNORECASE)
_ANSWER = re.compile(rf"^{_LEAD}(?:answer|ans|a)[ \t]?\d{{0,3}}[*_]{{0,2}}[ \t]?[:.)][ \t*_]*", re.IGNORECASE)
_LISTED = re.compile(r"^[ \t>#]{0,8}(?:\(?\d{1,3}[.):]|[*•–-])[ \t*_]{1,6}")
# Markers inside a line begin a line of their own. `A:` alone is too common a letter to be trusted in mid-sentence.
_INLINE = re.compile(r"[ \t]+(?=[*_]{0,2}(?:question|answer)[ \t]?\d{0,3}[*_]{0,2}[ \t]?:)", re.IGNORECASE)
_INLINE_SHORT = re.compile(r"[ \t]+(?=[*_]{0,2}Q\d{0,3}[*_]{0,2}:)|(?<=[?.!])[ \t]+(?=[*_]{0,2}A\d{0,3}[*_]{0,2}:)")


def question_answer_pairs(text: str, *, ended: bool = True) -> list[tuple[str, str]]:
    """Pairs in order, repetitions included; neither part is ever empty.

    With `ended` False the last answer may have been cut off: it is left out, unless it closes its sentence or is the
    only one.
    """
    lines = [piece for line in text.split("\n") for piece in _unfolded(line)]
    found: list[tuple[str, list[str]]] = []
    # Whether the next plain line still belongs to the current answer: a blank line after an answer ends it.
    in_question = open_answer = False
    for line in lines:
        plain = line.strip()
        if not plain:
            open_answer = open_answer and bool(found) and not found[-1][1]
            in_question = in_question and not (found and _asks(found[-1][0]))
            open_answer = open_answer or (bool(found) and not found[-1][1] and not in_question)
            continue
        if marker := _QUESTION.match(line):
            question, answer = _split_at_mark(line[marker.end() :])
            found.append((question, [answer] if answer else []))
            in_question, open_answer = not _asks(question), _asks(question)
        elif (marker := _ANSWER.match(line)) and found:
            if not found[-1][1]:
                found[-1][1].extend(_nonempty(_clean(line[marker.end() :])))
            in_question, open_answer = False, True
        elif (listed := _LISTED.match(line)) and "?" in line:
            question, answer = _split_at_mark(line[listed.end() :])
            found.append((question, [answer] if answer else []))
            in_question, open_answer = False, True
        elif plain.endswith("?"):
            if in_question and found:
                found[-1] = (f"{found[-1][0]} {_clean(plain)}".strip(), found[-1][1])
            else:
                found.append((_clean(plain), []))
            in_question, open_answer = False, True
        elif in_question and found:
            question, answer = _split_at_mark(f"{found[-1][0]} {plain}")
            found[-1] = (question, [answer] if answer else [])
            in_question, open_answer = not _asks(question), _asks(question)
        elif open_answer and found:
            found[-1][1].extend(_nonempty(_clean(plain)))
    pairs = [(question, " ".join(answer)) for question, answer in found]
    if not ended and len(pairs) > 1 and found[-1][1] and not pairs[-1][1].endswith((".", "!", "?")):
        pairs.pop()
    return [
        (question, answer)
        for question, answer in pairs
        if _has_word(question) and _has_word(answer) and len(question) + len(answer) <= MAX_PAIR_CHARACTERS
    ]


def _unfolded(line: str) -> list[str]:
    """A line with each marker inside it on a line of its own; its numbering stays with its first marker."""
    marker = _QUESTION.match(line) or _ANSWER.match(line)
    start = marker.end() if marker else 0
    return (line[:start] + _INLINE_SHORT.sub("\n", _INLINE.sub("\n", line[start:]))).split("\n")


def _split_at_mark(text: str) -> tuple[str, str]:
    """A question and what stands in its line after the question mark."""
    question, mark, rest = text.partition("?")
    if not mark:
        return _clean(text), ""
    return _clean(question) + "?", _clean(rest)


def _asks(question: str) -> bool:
    return question.endswith("?")


def _clean(text: str) -> str:
    return text.strip().strip("*_").strip()


def _nonempty(text: str) -> list[str]:
    return [text] if text else []


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
