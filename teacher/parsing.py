"""From a completion to a self-edit: what a small model writes, made into training documents, or the reason why not.

Pure and total: no completion raises. The task's own content comes first, once (a passage, or a few-shot task's
demonstrations); then what was written, without lists' numbering, polite openings, repetitions and a last line that was
cut off.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from teacher.directives import parse_directives, rejected
from teacher.question_answer import question_answer_pairs
from tutelage.domain.policy import Format, Parser
from tutelage.domain.self_edit import (
    Directives,
    Rejection,
    RejectionReason,
    SelfEdit,
    TextDocument,
    TrainingDocument,
    question_answer,
)
from tutelage.domain.task import DocumentTask, FewShotTask, Task

MAX_LINE_CHARACTERS = 2000
"""A longer line is split at ends of sentences: a student refuses documents beyond its longest sequence."""

_NUMBERING = re.compile(r"^[ \t>#]{0,8}(?:(?:\(?\d{1,3}[.):]|[*•–-])[ \t]{1,6}|\d{1,3}[.)](?=[^\d\s]))")
_HEADING = re.compile(r"^#{1,6}[ \t]+")
_OPENING = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|absolutely|here(?:'s| is| are)|below (?:is|are)|the following|as requested"
    r"|i have)\b",
    re.IGNORECASE,
)
_RULE = re.compile(r"^[-=*_`~ ]{3,}\w{0,12}$")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CLOSERS = (".", "!", "?", '."', '!"', '?"', ".”", ".)", ".'", "。")


@dataclass(frozen=True)
class Parsed:
    """A self-edit or its rejection, and how many repetitions were removed."""

    result: SelfEdit | Rejection
    duplicates_removed: int = 0


def parse_completion(text: str, format: Format, task: Task, *, ended: bool = True) -> Parsed:
    """The self-edit that `text` holds. `ended` False: the writer was cut off, so its last line may be half a one."""
    body = _readable(text)
    if not body.strip():
        return Parsed(Rejection(RejectionReason.EMPTY, message="the completion is empty"))
    directives = Directives()
    if format.directives:
        first, _, body = body.strip().partition("\n")
        parsed = parse_directives(first.strip())
        if isinstance(parsed, Rejection):
            return Parsed(parsed)
        directives = parsed
        if not body.strip():
            return Parsed(Rejection(RejectionReason.EMPTY, message="nothing follows the directives"))
    written = _written(body, format.parser, task, ended)
    if not written:
        return Parsed(rejected("text", body, f"text that the parser {format.parser.value} finds documents in"))
    given = given_documents(task, format.parser)
    documents, duplicates = _without_repetitions(given, written)
    if format.max_documents:
        documents = documents[: format.max_documents]
    return Parsed(SelfEdit(tuple(documents), directives), duplicates)


def given_documents(task: Task, parser: Parser) -> list[TrainingDocument]:
    """What the task itself gives to study: the passage once (as chat where the rest is chat), or the demonstrations."""
    content = task.content
    if isinstance(content, FewShotTask):
        return [
            question_answer(item.input, item.output)
            for item in content.demonstrations
            if item.input.strip() and item.output.strip()
        ]
    if not content.text.strip():
        return []
    if parser is Parser.QUESTION_ANSWER:
        return [question_answer(f"What do you know about {content.title.strip()}?", content.text.strip())]
    return [TextDocument(_titled(task, content.text.strip()))]


def _written(body: str, parser: Parser, task: Task, ended: bool) -> list[TrainingDocument]:
    if parser is Parser.QUESTION_ANSWER:
        return [question_answer(asked, answer) for asked, answer in question_answer_pairs(body, ended=ended)]
    if parser is Parser.LINES:
        pieces = list(_lines(body, ended))
    elif parser is Parser.PARAGRAPHS:
        pieces = list(_paragraphs(body, ended))
    else:
        pieces = [_without_cut_sentence(body.strip(), ended)]
    return [TextDocument(_titled(task, piece)) for piece in pieces if _has_word(piece)]


def _lines(body: str, ended: bool) -> Iterable[str]:
    kept = [line for line in body.split("\n") if line.strip()]
    if not ended and len(kept) > 1 and not kept[-1].rstrip().endswith(_CLOSERS):
        kept.pop()
    for place, line in enumerate(kept):
        if _RULE.match(line.strip()) or (place < 2 and len(kept) > 1 and _opens(line)):
            continue
        yield from _split_long(_plain(line))


def _paragraphs(body: str, ended: bool) -> Iterable[str]:
    blocks = [block.strip() for block in re.split(r"\n[ \t]*\n", body) if block.strip()]
    if blocks:
        blocks[-1] = _without_cut_sentence(blocks[-1], ended)
    for place, block in enumerate(blocks):
        if _RULE.match(block) or (place < 2 and len(blocks) > 1 and "\n" not in block and _opens(block)):
            continue
        yield from _split_long(_plain(block))


def _opens(line: str) -> bool:
    """Whether a line only announces what follows, such as `Here are some facts:`."""
    plain = _plain(line)
    return plain.endswith(":") or (bool(_OPENING.match(plain)) and (plain.endswith(("!", ":")) or len(plain) < 40))


def _plain(line: str) -> str:
    """Without numbering, bullets, heading marks and bold."""
    text = _NUMBERING.sub("", _HEADING.sub("", line.strip())).strip()
    return text.replace("**", "").strip()


def _split_long(text: str) -> Iterable[str]:
    """Pieces of at most MAX_LINE_CHARACTERS, split after sentences where there are any."""
    piece = ""
    for sentence in _SENTENCE_END.split(text) if len(text) > MAX_LINE_CHARACTERS else [text]:
        if piece and len(piece) + 1 + len(sentence) > MAX_LINE_CHARACTERS:
            yield piece
            piece = ""
        piece = f"{piece} {sentence}" if piece else sentence
        while len(piece) > MAX_LINE_CHARACTERS:
            yield piece[:MAX_LINE_CHARACTERS]
            piece = piece[MAX_LINE_CHARACTERS:]
    if piece:
        yield piece


def _without_cut_sentence(text: str, ended: bool) -> str:
    if ended or text.endswith(_CLOSERS):
        return text
    sentences = _SENTENCE_END.split(text)
    return text if len(sentences) < 2 else text[: text.rindex(sentences[-1])].rstrip()


def _titled(task: Task, text: str) -> str:
    title = task.content.title.strip() if isinstance(task.content, DocumentTask) else ""
    return f"{title}\n{text}" if title else text


def _without_repetitions(
    given: list[TrainingDocument], written: list[TrainingDocument]
) -> tuple[list[TrainingDocument], int]:
    """First of each; the same question with another answer is a repetition too: a card has one answer."""
    seen: set[str] = set()
    kept: list[TrainingDocument] = []
    for document in [*given, *written]:
        text = document.text if isinstance(document, TextDocument) else document.messages[0].content
        key = " ".join(text.casefold().split()).rstrip(".!")
        if key not in seen:
            seen.add(key)
            kept.append(document)
    return kept, len(given) + len(written) - len(kept)


def _readable(text: str) -> str:
    """Without control characters, lone surrogates and the marks that a cut byte sequence leaves."""
    unified = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(
        character
        for character in unified
        if character in "\n\t"
        or (unicodedata.category(character) not in ("Cc", "Cs") and character not in "\ufffd\ufeff\u200b")
    )


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
