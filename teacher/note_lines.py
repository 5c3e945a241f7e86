"""Notes from a completion: its lines, its paragraphs, its lines behind a train of thought, or the whole of it.

Taken off: numbering, bullets, headings, quotes and commas of a JSON list, polite openings and closings, sentences that
a model in a loop says again and again, and a last line or sentence that was cut off.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

MAX_LINE_CHARACTERS = 2000
"""A longer line is split at ends of sentences: a student refuses documents beyond its longest sequence."""

_NUMBERING = re.compile(
    r"^[ \t>#]{0,8}(?:(?:\(?\d{1,3}[.):]|\([a-z]\)|[*•‣◦▪–—-])[ \t]{1,6}|\d{1,3}[.)](?=[^\d\s]))(?:\[[ xX]\][ \t])?"
)
_NUMBER_ALONE = re.compile(r"^\(?\d{1,3}[.):]{1,2}$")
"""What is left of an item that nothing was written in."""
_HEADING = re.compile(r"^#{1,6}[ \t]+")
_OPENING = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|absolutely|great|here(?:'s|’s| is| are)|below (?:is|are)|the following"
    r"|as requested|i have|i've|i will|i'll|let me|let's)\b",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"^(?:i hope (?:this|that|it)|let me know|feel free|please let|if you (?:have|need|would like)|these (?:are|facts)"
    r"|is there anything)\b.{0,160}$",
    re.IGNORECASE,
)
_RULE = re.compile(r"^[-=*_`~ ]{3,}\w{0,12}$")
_SHORTENED = re.compile(
    r"(?<!\w)(?:(?:[^\W\d_]\.)+|(?:dr|mr|mrs|ms|st|gen|col|capt|lt|sgt|rev|prof|sen|rep|gov|pres|jr|sr|no|vs|ca|approx|vol|fig|ed|mt)\.)$",
    re.IGNORECASE,
)
"""The end of what is no sentence's."""
_SENTENCE_END = re.compile(r"(?<=[.!?。！？۔؟])\s+")
# Items that run on in one line: "1. One fact. 2. Two facts."
_RUN_ON = re.compile(r"(?<=[.!?;\"”)])[ \t]+(?=\(?\d{1,2}[.)][ \t]+[^\W\d_])")
_QUOTED_ITEM = re.compile(r'^[\[ \t]*"(.{2,})"[ \t]*\]?,?$')
_LIST_HEADING = re.compile(
    r"^\W*(?:(?:the|my|final|list of|numbered list of|short)[ \t]){0,3}"
    r"(?:implications?|facts?|list|notes?|answer|statements?|conclusions?)\b[^.!?\n]{0,40}:\W*$",
    re.IGNORECASE,
)
_CLOSERS = (".", "!", "?", '."', '!"', '?"', ".”", ".)", ".'", "。", "！", "？", "؟", "۔", '".')


def lines(body: str, ended: bool, repairs: Counter[str]) -> Iterator[str]:
    """One note a line; what was mended is counted in `repairs`."""
    kept = [line for whole in body.split("\n") for line in _run_on(whole) if line.strip()]
    if not ended and kept:
        kept = [*kept[:-1], *_whole_part(kept[-1], repairs, alone=len(kept) == 1)]
    for place, line in enumerate(kept):
        if len(kept) > 1 and _announces(line, first=place < 2, last=place == len(kept) - 1):
            repairs["preamble"] += 1
            continue
        if not _RULE.match(line.strip()):
            yield from _split_long(_without_loop(_plain(line), repairs), repairs)


def thought_lines(body: str, ended: bool, repairs: Counter[str]) -> Iterator[str]:
    """The lines behind the heading of a list (`Facts:`), else the numbered lines, else all: thoughts are no notes."""
    whole = body.split("\n")
    heading = next((place for place, line in enumerate(whole) if _LIST_HEADING.match(line)), None)
    if heading is not None and any(line.strip() for line in whole[heading + 1 :]):
        repairs["thought"] += sum(bool(line.strip()) for line in whole[:heading])
        return lines("\n".join(whole[heading + 1 :]), ended, repairs)
    numbered = [line for line in whole if _NUMBERING.match(line)]
    if numbered and len(numbered) < len(whole):
        repairs["thought"] += sum(bool(line.strip()) for line in whole) - len(numbered)
        last = next(line for line in reversed(whole) if line.strip())
        return lines("\n".join(numbered), ended or last != numbered[-1], repairs)
    return lines(body, ended, repairs)


def paragraphs(body: str, ended: bool, repairs: Counter[str]) -> Iterator[str]:
    """One note a paragraph."""
    blocks = [block.strip() for block in re.split(r"\n[ \t]*\n", body) if block.strip()]
    if blocks:
        blocks[-1] = _without_cut_sentence(blocks[-1], ended, repairs)
    for place, block in enumerate(blocks):
        one_line = "\n" not in block
        if len(blocks) > 1 and one_line and _announces(block, first=place < 2, last=place == len(blocks) - 1):
            repairs["preamble"] += 1
            continue
        if not _RULE.match(block):
            yield from _split_long(_without_loop(_plain(block), repairs), repairs)


def whole(body: str, ended: bool, repairs: Counter[str]) -> Iterator[str]:
    """All of it, in pieces where it is long."""
    yield from _split_long(_without_loop(_without_cut_sentence(body.strip(), ended, repairs), repairs), repairs)


def _whole_part(line: str, repairs: Counter[str], *, alone: bool) -> list[str]:
    """What stays of a line that was cut off: of several sentences the whole ones, of one nothing unless it is alone."""
    if line.rstrip().endswith(_CLOSERS):
        return [line]
    found = _sentences(line.rstrip())
    if len(found) == 1 and alone:
        return [line]
    repairs["cut_off"] += 1
    return [" ".join(found[:-1])] if len(found) > 1 and _plain(" ".join(found[:-1])) else []


def _sentences(text: str) -> list[str]:
    """A text in sentences: none ends at an initial, a title such as `Dr.`, or the number of an item."""
    found: list[str] = []
    for piece in _SENTENCE_END.split(text):
        if found and (_SHORTENED.search(found[-1]) or not _plain(found[-1])):
            found[-1] += f" {piece}"
        else:
            found.append(piece)
    return found


def _run_on(line: str) -> list[str]:
    return _RUN_ON.split(line) if _NUMBERING.match(line) else [line]


def _announces(line: str, *, first: bool, last: bool) -> bool:
    """Whether a line only announces what follows, such as `Here are some facts:`, or takes its leave."""
    plain = _plain(line)
    calls = plain.endswith("!")
    if plain.endswith((":", "：")) and len(plain) < 120:
        return True
    # An item of a list is a note even if it begins like chat ("1. Great Zimbabwe fell."), unless it calls out.
    if _is_item(line) and not calls:
        return False
    if first and _OPENING.match(plain) and (calls or len(plain) < 40):
        return True
    return last and bool(_CLOSING.match(plain))


def _is_item(line: str) -> bool:
    bare = line.replace("**", "").strip()
    return bool(_NUMBERING.match(bare) or _QUOTED_ITEM.match(bare))


def _plain(line: str) -> str:
    """Without numbering, bullets, heading marks, bold and the quotes of a JSON list, also one within another."""
    text = line.strip()
    # Bounded, for lines of nothing but marks.
    for _ in range(50):
        before = text
        if quoted := _QUOTED_ITEM.match(text):
            text = quoted.group(1).replace('\\"', '"')
        text = _NUMBERING.sub("", _HEADING.sub("", text)).replace("**", "").replace("__", "").strip()
        if text == before:
            break
    return "" if _NUMBER_ALONE.match(text) else text


def _without_loop(text: str, repairs: Counter[str]) -> str:
    """Without sentences that stand in the text already: a model in a loop teaches nothing more."""
    pieces = _SENTENCE_END.split(text)
    if len(pieces) < 2:
        return text
    kept: dict[str, str] = {}
    for piece in pieces:
        kept.setdefault(" ".join(piece.casefold().split()), piece)
    if len(kept) == len(pieces):
        return text
    repairs["loop"] += len(pieces) - len(kept)
    return " ".join(kept.values())


def _split_long(text: str, repairs: Counter[str]) -> Iterable[str]:
    """Pieces of at most MAX_LINE_CHARACTERS, split after sentences where there are any."""
    if len(text) <= MAX_LINE_CHARACTERS:
        return [text] if text else []
    pieces, piece = [], ""
    for sentence in _SENTENCE_END.split(text):
        if piece and len(piece) + 1 + len(sentence) > MAX_LINE_CHARACTERS:
            pieces.append(piece)
            piece = ""
        piece = f"{piece} {sentence}" if piece else sentence
        while len(piece) > MAX_LINE_CHARACTERS:
            pieces.append(piece[:MAX_LINE_CHARACTERS])
            piece = piece[MAX_LINE_CHARACTERS:]
    repairs["split"] += 1
    return [*pieces, piece] if piece else pieces


def _without_cut_sentence(text: str, ended: bool, repairs: Counter[str]) -> str:
    if ended or text.endswith(_CLOSERS):
        return text
    sentences = _SENTENCE_END.split(text)
    if len(sentences) < 2:
        return text
    repairs["cut_off"] += 1
    return text[: text.rindex(sentences[-1])].rstrip()
