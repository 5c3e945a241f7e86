"""From a completion to a self-edit: what a small model writes, made into training documents, or the reason why not.

Pure and total: no completion raises. The task's own content comes first, once (a passage, or a few-shot task's
demonstrations); then what was written, without what only looks like notes: repetitions, echoes of the instruction and
the passage itself. What was mended is counted by kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache

from teacher.directives import DirectiveLine, parse_directives, rejected
from teacher.formats import DIRECTIVES_ASKED, builtin_formats
from teacher.note_lines import MAX_LINE_CHARACTERS, lines, paragraphs, thought_lines, whole
from teacher.question_answer import question_answer_pairs
from teacher.readable import readable
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

__all__ = [
    "MAX_COMPLETION_CHARACTERS",
    "MAX_LINE_CHARACTERS",
    "Parsed",
    "chosen_names",
    "given_documents",
    "parse_completion",
]

MAX_SAME_ANSWER = 2
"""Pairs about a document that may have one answer. A student that is taught one answer to many questions gives it to
all: of self-edits with four and more such pairs the reward was -0.27, and with two left of them +0.01
(docs/results.md)."""
MAX_COMPLETION_CHARACTERS = 400_000
"""What stands after it is not read; far beyond what any teacher may write."""
ECHO_WORDS = 4
"""So many words of the instruction in one stretch are an echo of it."""
COPIED_WORDS = 12
"""Of a shorter passage a note may well say all, and something of its own."""
NAMING_WORDS = 4
"""Most words of a line that names a format without being the first."""

_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL | re.IGNORECASE)
_SPLITTERS: Mapping[Parser, Callable[[str, bool, Counter[str]], Iterator[str]]] = {
    Parser.LINES: lines,
    Parser.THOUGHT_LINES: thought_lines,
    Parser.PARAGRAPHS: paragraphs,
    Parser.WHOLE: whole,
}


@dataclass(frozen=True)
class Parsed:
    """A self-edit or its rejection, how many repetitions were removed, and what else was mended."""

    result: SelfEdit | Rejection
    duplicates_removed: int = 0
    repairs: Mapping[str, int] = field(default_factory=dict)
    """Count by kind: unreadable, thought, cut_off, preamble, loop, split, echo, same_answer, over_limit."""
    chosen_format: str = ""
    """The format that a policy chose for itself, where it was asked to."""


def parse_completion(text: str, format: Format, task: Task, *, ended: bool = True) -> Parsed:
    """The self-edit that `text` holds. `ended` False: the writer was cut off, so its last line may be half a one."""
    repairs: Counter[str] = Counter()
    body, repairs["unreadable"] = readable(text[:MAX_COMPLETION_CHARACTERS])
    body, repairs["thought"] = _THOUGHT.subn("", body)
    parsed = _parsed(body, format, task, ended and len(text) <= MAX_COMPLETION_CHARACTERS, repairs)
    return replace(parsed, repairs={kind: count for kind, count in repairs.items() if count})


def _parsed(body: str, format: Format, task: Task, ended: bool, repairs: Counter[str]) -> Parsed:
    if not body.strip():
        return _empty("the completion is empty")
    line = DirectiveLine(Directives())
    if format.directives:
        found, body, before = parse_directives(body)
        repairs["preamble"] += before
        if isinstance(found, Rejection):
            return Parsed(found)
        line = found
        if not body.strip():
            return _empty("nothing follows the directives")
    parser, chosen = format.parser, ""
    if parser is Parser.MIXED:
        first = body.strip().partition("\n")[0]
        chosen, body, before = _named_format(body)
        repairs["preamble"] += before
        if not chosen:
            return Parsed(rejected("format", first, "a first line that names one of " + ", ".join(_chosen_parsers())))
        parser = _chosen_parsers()[chosen]
        if not body.strip():
            return replace(_empty("nothing follows the name of the format"), chosen_format=chosen)
    written = _written(body, parser, task, ended, repairs)
    if not written:
        missing = rejected("text", body, f"text that the parser {parser.value} finds documents in")
        return Parsed(missing, chosen_format=chosen)
    given = given_documents(task, parser)
    title = _title(task)
    instruction, wording = _key(_asked(format, task)), _key(_asked(format, None))
    foreign = _example_names(format.prompt) - set(re.findall(r"\w+", f"{title} {_text(task)}"))
    # Once for all notes: a passage may be long.
    passage = _key(readable(task.content.text)[0]) if isinstance(task.content, DocumentTask) else None
    own = [document for document in written if not _echoes(document, instruction, wording, foreign, title, passage)]
    repairs["echo"] = len(written) - len(own)
    documents = _without_repetitions([*given, *own])
    first_note = len(_without_repetitions(given))
    # Of what was written: demonstrations may repeat each other too.
    duplicates = len(own) - (len(documents) - first_note)
    notes = documents[first_note:]
    if isinstance(task.content, DocumentTask):
        # Of demonstrations the answers may well be of a few kinds.
        notes = _answered_differently(notes)
        repairs["same_answer"] = len(documents) - first_note - len(notes)
    if not notes:
        return replace(_empty("it only repeats the task or the instruction", duplicates), chosen_format=chosen)
    # Limits are on what was written: what the task gives comes beside it, so that a long task leaves room for notes.
    limit = min(bound for bound in (line.notes, format.max_documents, len(notes)) if bound)
    repairs["over_limit"] += len(notes) - limit
    kept = SelfEdit((*documents[:first_note], *notes[:limit]), line.directives)
    return Parsed(kept, duplicates, chosen_format=chosen)


def given_documents(task: Task, parser: Parser) -> list[TrainingDocument]:
    """What the task itself gives to study: the passage once (as chat where the rest is chat), or the demonstrations."""
    content = task.content
    if isinstance(content, FewShotTask):
        return [
            question_answer(readable(item.input)[0], readable(item.output)[0])
            for item in content.demonstrations
            if readable(item.input)[0].strip() and readable(item.output)[0].strip()
        ]
    text = readable(content.text)[0].strip()
    if not text:
        return []
    if parser is Parser.QUESTION_ANSWER:
        return [question_answer(f"What do you know about {_title(task)}?", text)]
    return [TextDocument(_titled(task, text))]


def _written(body: str, parser: Parser, task: Task, ended: bool, repairs: Counter[str]) -> list[TrainingDocument]:
    def read(text: str) -> str:
        # Once more: taking off marks joins what stood on both sides, and JSON spells any character as an escape.
        found, unreadable = readable(text)
        repairs["unreadable"] += unreadable
        return found

    if parser is Parser.QUESTION_ANSWER:
        pairs = [(read(asked), read(said)) for asked, said in question_answer_pairs(body, ended=ended, repairs=repairs)]
        return [question_answer(asked, said) for asked, said in pairs if _has_word(asked) and _has_word(said)]
    pieces = [read(piece) for piece in _SPLITTERS[parser](body, ended, repairs)]
    return [TextDocument(_titled(task, piece)) for piece in pieces if _has_word(piece)]


@lru_cache(maxsize=1)
def _chosen_parsers() -> Mapping[str, Parser]:
    """Parser by the names that a policy may choose from; longer names first, so that none hides another."""
    known = {item.name: item.parser for item in builtin_formats() if item.parser is not Parser.MIXED}
    return dict(sorted(known.items(), key=lambda item: -len(item[0])))


def chosen_names() -> tuple[str, ...]:
    """The names that a policy may choose a format by."""
    return tuple(_chosen_parsers())


def _named_format(body: str) -> tuple[str, str, int]:
    """The format that a body names first (empty for none), what follows the name's line, and the lines before it.

    A chat model may greet first, so that one of the two lines below counts too where it says little but the name.
    """
    rest = body
    for before in range(3):
        line, _, rest = rest.strip().partition("\n")
        name = _format_name(line)
        if name and (not before or len(re.findall(r"[\w-]+", line)) <= NAMING_WORDS):
            return name, rest, before
    return "", "", 0


def _format_name(line: str) -> str:
    """The first of the formats' names that stands in the line; empty for none."""
    places = [
        (found.start(), -len(name), name)
        for name in _chosen_parsers()
        if (found := re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", line.casefold().replace("_", "-")))
    ]
    return min(places)[2] if places else ""


def _empty(message: str, duplicates: int = 0) -> Parsed:
    return Parsed(Rejection(RejectionReason.EMPTY, message=message), duplicates)


def _title(task: Task) -> str:
    return readable(task.content.title)[0].strip() if isinstance(task.content, DocumentTask) else ""


def _asked(format: Format, task: Task | None) -> str:
    """What a prompt says beside what it is about, as `teacher.formats.render_prompt` words it; without task, of any."""
    named = "\n"
    if task is not None:
        content = task.content
        named = content.instruction if isinstance(content, FewShotTask) else content.title
    told = format.prompt.replace("{title}", readable(named)[0].strip()).replace("{text}", "\n")
    return f"{DIRECTIVES_ASKED}\n{told}" if format.directives else told


def _text(task: Task) -> str:
    content = task.content
    if isinstance(content, DocumentTask):
        return content.text
    return " ".join(f"{item.input} {item.output}" for item in content.demonstrations)


def _titled(task: Task, text: str) -> str:
    title = _title(task)
    return f"{title}\n{text}" if title else text


def _without_repetitions(documents: Sequence[TrainingDocument]) -> list[TrainingDocument]:
    """First of each; the same question with another answer is a repetition too: a card has one answer."""
    seen: set[str] = set()
    kept: list[TrainingDocument] = []
    for document in documents:
        key = _key(document.text if isinstance(document, TextDocument) else document.messages[0].content)
        if key not in seen:
            seen.add(key)
            kept.append(document)
    return kept


def _answered_differently(notes: Sequence[TrainingDocument]) -> list[TrainingDocument]:
    """Notes without the pairs whose answer `MAX_SAME_ANSWER` before them have."""
    seen: Counter[str] = Counter()
    kept = []
    for note in notes:
        if not isinstance(note, TextDocument):
            answer = _key(note.messages[-1].content)
            seen[answer] += 1
            if seen[answer] > MAX_SAME_ANSWER:
                continue
        kept.append(note)
    return kept


def _echoes(
    document: TrainingDocument, instruction: str, wording: str, foreign: Set[str], title: str, passage: str | None
) -> bool:
    """Whether a note is nothing but the title, the passage or a piece of the instruction, or is about its example."""
    texts = [document.text] if isinstance(document, TextDocument) else [item.content for item in document.messages]
    if foreign and any(foreign & set(re.findall(r"\w+", text)) for text in texts):
        return True
    if isinstance(document, TextDocument):
        note = _key(document.text.removeprefix(f"{title}\n") if title else document.text)
        if note == _key(title) or (passage is not None and _copies(note, passage, _key(title))):
            return True
    else:
        note = _key(document.messages[0].content)
        answer = _key(document.messages[1].content)
        if passage is not None and (answer == passage or _copies(answer, passage, _key(title))):
            return True
        # The title, or what a few-shot task says of itself, may well be asked for.
        if _stands_in(answer, wording):
            return True
    return _stands_in(note, instruction)


def _stands_in(note: str, instruction: str) -> bool:
    return note.count(" ") + 1 >= ECHO_WORDS and f" {note} " in f" {instruction} "


def _copies(note: str, passage: str, title: str) -> bool:
    """Whether a note is little but the passage: all of it or most, whatever stands before or after.

    What is the passage word for word is a repetition of it already.
    """
    if note == passage:
        return False
    note = note.removeprefix(f"{title} ") if title else note
    own, whole = note.count(" ") + 1, passage.count(" ") + 1
    if whole < COPIED_WORDS:
        return note == passage
    cut = 2 * own > whole and f" {note} " in f" {passage} "
    return cut or (4 * own < 5 * whole and f" {passage} " in f" {note} ")


@lru_cache(maxsize=64)
def _example_names(prompt: str) -> frozenset[str]:
    """Names that the built-in formats' lines in a prompt say again and again: what the example in it is about.

    Other lines are a user's own words, or tell of students: what they say again and again may be what notes are about.
    """
    wording = "\n".join(text for text in prompt.split("\n") if text in _builtin_lines())
    found = Counter(re.findall(r"(?<=\w )[A-Z]\w{2,}", wording))
    return frozenset(name for name, count in found.items() if count > 2)


@lru_cache(maxsize=1)
def _builtin_lines() -> frozenset[str]:
    return frozenset(text for format in builtin_formats() for text in format.prompt.split("\n"))


def _key(text: str) -> str:
    """What two notes are compared by: their words, whatever their case and signs; all of it where there is no word."""
    return " ".join(re.findall(r"\w+", text.casefold())) or " ".join(text.split())


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)
