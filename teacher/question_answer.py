"""Question and answer pairs from a completion, in whichever of the usual forms a model falls into.

Understood: labels (`Question:`/`Answer:`, `Q1.`/`A1.`, `**Question 2**`, `[Answer]`, `Optional answer:`) on lines of
their own or several in one line, lists of questions whose answer follows the question mark, on the next lines or in a
list of answers below, JSON objects with a question and an answer, and tables of two columns. Multiple choice counts
where the right choice is named.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

MAX_PAIR_CHARACTERS = 4000
"""A longer pair is no flash card but a runaway; it is left out and counted."""

_LEAD = r"[ \t>#*_•–—-]{0,12}(?:\(?\d{1,3}[.):\]][ \t*_]{0,4})?[\[(<]?[*_]{0,3}"
_KIND = (
    r"(?:(?:the|an?|one|your|optional|short|brief|correct|right|possible|sample|example|suggested|expected|final|"
    r"model|full|next|first|second|third)[ \t]){0,2}"
)
_NUMBER = r"[ \t]?\#?\d{0,3}"
# A label ends with a sign, with its line, or with its bracket; a letter alone only with a sign.
_SIGN = r"[*_\])>]{0,3}[ \t]?(?:[:.)：=][*_]{0,3}|[ \t]?[-–—](?=[ \t]))[ \t*_]*"
_END = rf"(?:{_SIGN}|[*_\])>]{{0,3}}[ \t]*$|[*_]{{0,3}}[\])>][ \t]*)"


def _label(words: str, letter: str) -> re.Pattern[str]:
    return re.compile(
        rf"^{_LEAD}(?:{_KIND}(?:{words}){_NUMBER}(?:[ \t]is(?=:))?{_END}|{letter}{_NUMBER}{_SIGN})", re.IGNORECASE
    )


_QUESTION = _label("questions?", "q")
_ANSWER = _label("answers?|ans|reply|response", "a")
_OPTION = re.compile(r"^[ \t*_(-]{0,6}([A-Ea-e])[.)]\s+(?=\S)")
_LISTED = re.compile(r"^[ \t>#]{0,8}(?:\(?\d{1,3}[.):]|[*•–-])[ \t*_]{1,6}")
# Labels inside a line begin a line of their own. `A:` alone is too common a letter to be trusted in mid-sentence.
_INLINE = re.compile(
    rf"[ \t|;,/(\[-]{{1,4}}([*_(\[]{{0,3}}{_KIND}(?:question|answer){_NUMBER}[*_\])]{{0,3}}[ \t]?[:：])", re.IGNORECASE
)
_INLINE_SHORT = re.compile(
    r"[ \t]{1,4}(?=[*_]{0,2}Q\d{0,3}[*_]{0,2}:)|(?<=[?.!])[ \t]{1,4}(?=[*_]{0,2}A\d{0,3}[*_]{0,2}:)"
)
_TAG = re.compile(r"<(/?)(question|answer|q|a)>", re.IGNORECASE)
_ANSWER_KEY = re.compile(r"^[ \t#*_]{0,8}answers?(?: key)?[ \t*_]{0,3}:?[ \t*_]*$", re.IGNORECASE | re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]{0,8}\(?\d{1,3}[.):][ \t]+(.+)$", re.MULTILINE)
_DASHED = re.compile(r"[?？؟][*_]{0,2}[ \t]+(?:[-–—=]+>?|→)[ \t]")
_MARK = re.compile(r"[?？؟]")
_JSON_PAIR = re.compile(
    r'"(?:question|q|prompt)"\s*:\s*("(?:[^"\\\n]|\\.){1,2000}")\s*,\s*"(?:answer|a|response)"\s*:\s*'
    r'("(?:[^"\\\n]|\\.){1,2000}"|-?\d[\d.,]{0,20})',
    re.IGNORECASE,
)
_NO_ANSWER = re.compile(
    r"^(?:n/?a|\[.*\]|<.*>|no answer(?: (?:is |was )?(?:given|found|provided|available))?\.?"
    r"|(?:(?:it|this) is )?(?:not|un)[ ]?(?:mentioned|specified|provided|stated|given|known)\b.{0,60})$",
    re.IGNORECASE,
)


class _Line(Enum):
    BLANK = auto()
    QUESTION = auto()
    ANSWER = auto()
    OPTION = auto()
    LISTED = auto()
    PLAIN = auto()


@dataclass
class _Card:
    """A question being read, with what has been found of its answer."""

    question: str
    answer: list[str] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)
    answering: bool = False
    """Whether the next plain line belongs to the answer."""

    @property
    def asks(self) -> bool:
        return bool(_MARK.search(self.question[-1:]))

    def read(self, text: str) -> None:
        """More of the question, or the rest of its line: the answer."""
        whole = f"{self.question} {text}".strip()
        mark = _MARK.search(whole)
        if mark and (closed := re.match(r"[\"”'*_]+(?=\s|$)", whole[mark.end() :])):
            whole = whole[: mark.end()].lstrip("\"“'*_") + whole[mark.end() + closed.end() :]
            mark = _MARK.search(whole)
        self.question = _clean(whole[: mark.end()] if mark else whole)
        self.answer += _nonempty(_clean(whole[mark.end() :]) if mark else "")
        self.answering = mark is not None

    def pair(self) -> tuple[str, str]:
        """Question and answer; of a choice, the text that the named letter stands for."""
        # Alone, `A.` was the label of an answer.
        answer = " ".join(self.answer) or (self.options.get("a", "") if len(self.options) == 1 else "")
        chosen = re.match(r"^\(?([A-Ea-e])\)?(?:[.):]\s|\.?$)", answer)
        if self.options and chosen and chosen.group(1).lower() in self.options:
            answer = self.options[chosen.group(1).lower()]
        return self.question, answer


def question_answer_pairs(
    text: str, *, ended: bool = True, repairs: Counter[str] | None = None
) -> list[tuple[str, str]]:
    """Pairs in order, repetitions included; neither part is ever empty. What was left out is counted in `repairs`.

    With `ended` False the last answer may have been cut off: it is left out, unless it closes its sentence or is the
    only one.
    """
    repairs = Counter() if repairs is None else repairs
    pairs = _json_pairs(text)
    if not pairs and (pairs := _table_pairs(text) or _keyed_pairs(text)) and not ended and _breaks_off(text, pairs):
        pairs.pop()
        repairs["cut_off"] += 1
    elif not pairs:
        text = _TAG.sub(lambda tag: "\n" if tag.group(1) else f"\n{tag.group(2)}: ", text)
        cards = _cards(text)
        pairs = [card.pair() for card in cards]
        if not ended and pairs and _is_cut(cards[-1], alone=len(pairs) == 1):
            pairs.pop()
            repairs["cut_off"] += 1
    found = [(question, answer) for question, answer in pairs if _is_card(question, answer)]
    kept = [pair for pair in found if len(pair[0]) + len(pair[1]) <= MAX_PAIR_CHARACTERS]
    repairs["over_limit"] += len(found) - len(kept)
    return kept


def _is_cut(last: _Card, *, alone: bool) -> bool:
    """Whether the last card of a reply that was cut off is no whole one: unanswered, or in the midst of its answer."""
    _, answer = last.pair()
    return not answer or bool(not alone and last.answer and not answer.endswith((".", "!", "?", "。")))


def _breaks_off(text: str, pairs: list[tuple[str, str]]) -> bool:
    """Whether a text ends in the midst of the last of several answers, and not behind the end of its row."""
    line = text.rstrip().rpartition("\n")[2]
    if line.count("|") < 2 and not _NUMBERED.match(line):
        # Prose behind them.
        return False
    within = _clean(line.rpartition("|")[2]).endswith(pairs[-1][1])
    return len(pairs) > 1 and within and not line.endswith((".", "!", "?", "。"))


def _cards(text: str) -> list[_Card]:
    cards: list[_Card] = []
    for line in (piece for whole in text.split("\n") for piece in _unfolded(whole)):
        card = cards[-1] if cards else None
        kind, rest, letter = _read_line(line, card)
        if kind is _Line.BLANK:
            # A blank line ends an answer, and a question that asks; an answer may still follow it.
            if card is not None:
                card.answering = not card.answer and (card.asks or card.answering or not card.question)
        elif kind is _Line.QUESTION or kind is _Line.LISTED:
            cards.append(_Card(""))
            cards[-1].read(rest)
        elif card is None:
            if _asks(rest):
                cards.append(_Card(_clean(rest), answering=True))
        elif kind is _Line.ANSWER:
            if not card.answer:
                card.answer += _nonempty(_clean(rest))
            card.answering = not card.answer or card.answering
        elif kind is _Line.OPTION:
            card.options.setdefault(letter, _clean(rest))
            card.answering = False
        elif not (card.asks or card.answer or card.answering or len(card.question) > MAX_PAIR_CHARACTERS):
            # A longer one is left out in the end; each further line would be read with all before it.
            card.read(rest)
        elif _asks(rest):
            cards.append(_Card(_clean(rest), answering=True))
        elif card.answering:
            card.answer += _nonempty(_clean(rest))
    return cards


def _read_line(line: str, card: _Card | None) -> tuple[_Line, str, str]:
    """What a line is, what stands behind its label or number, and the letter of an option."""
    plain = line.strip()
    if not plain:
        return _Line.BLANK, "", ""
    if marker := _QUESTION.match(line):
        return _Line.QUESTION, line[marker.end() :], ""
    option = _OPTION.match(line)
    # `A)` begins a choice where it follows a question; `A:` an answer.
    if option and card is not None and (option.group(1).lower() == "a" or card.options):
        return _Line.OPTION, line[option.end() :], option.group(1).lower()
    if marker := _ANSWER.match(line):
        rest = line[marker.end() :]
        while again := _ANSWER.match(rest):
            rest = rest[again.end() :]
        return _Line.ANSWER, rest, ""
    listed = _LISTED.match(line)
    if (listed and _MARK.search(line)) or _DASHED.search(line):
        return _Line.LISTED, line[listed.end() if listed else 0 :], ""
    return _Line.PLAIN, plain, ""


def _unfolded(line: str) -> list[str]:
    """A line with each label inside it on a line of its own; its numbering stays with its first label."""
    marker = _QUESTION.match(line) or _ANSWER.match(line)
    start = marker.end() if marker else 0
    return (line[:start] + _INLINE_SHORT.sub("\n", _INLINE.sub(r"\n\1", line[start:]))).split("\n")


def _json_pairs(text: str) -> list[tuple[str, str]]:
    """Pairs of JSON objects, whether or not the whole is valid JSON: models cut off and add commas."""
    found = []
    for match in _JSON_PAIR.finditer(text):
        try:
            question, answer = (
                json.loads(part, strict=False) if part.startswith('"') else part for part in match.groups()
            )
        except ValueError:
            continue
        found.append((_one_line(question), _one_line(answer)))
    return found


def _keyed_pairs(text: str) -> list[tuple[str, str]]:
    """A list of questions, and below it as many numbered answers under a heading of their own."""
    key = _ANSWER_KEY.search(text)
    if key is None:
        return []
    cards = [card for card in _cards(text[: key.start()]) if card.question]
    answers = [_clean(found) for found in _NUMBERED.findall(text[key.end() :])]
    if len(cards) < 2 or len(cards) != len(answers) or any(card.answer for card in cards):
        return []
    return [(card.question, answer) for card, answer in zip(cards, answers, strict=True)]


def _table_pairs(text: str) -> list[tuple[str, str]]:
    """Rows of a table with two columns, or three where the first counts."""
    lines = [line.strip().strip("|") for line in text.split("\n") if line.count("|") > 1]
    rows = [[_clean(cell) for cell in line.split("|")] for line in lines]
    pairs = [(row[-2], row[-1]) for row in rows if len(row) == 2 or (len(row) == 3 and row[0].rstrip(".").isdigit())]
    return [pair for pair in pairs if _asks(pair[0])]


def _asks(text: str) -> bool:
    return bool(_MARK.search(text.rstrip("*_ \t\"')")[-1:]))


def _clean(text: str) -> str:
    bare = re.sub(r"^[ \t]*(?:[-–—=]+>?|→|:)[ \t]+", "", text.replace("**", "")).strip().strip("*_").strip()
    if len(bare) > 1 and bare[0] == bare[-1] == '"' and bare.count('"') == 2:
        bare = bare[1:-1].strip()
    return bare[:-1].rstrip() if bare.endswith(")") and "(" not in bare else bare


def _nonempty(text: str) -> list[str]:
    return [text] if text else []


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _is_card(question: str, answer: str) -> bool:
    return _has_word(question) and _has_word(answer) and not _NO_ANSWER.match(answer)


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
