"""Formats of self-edits are data: a prompt and the name of a parser. The built-in ones lie beside this file.

A parser also fixes how the reply is begun for the writer. A small model that reads `Question:` as the start of its own
reply goes on with a question, where it would otherwise chat. The beginning is part of the prompt's ids, so that the
log-probabilities stay those of what the model itself wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import yaml

from teacher.readable import readable
from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.policy import Format, Parser
from tutelage.domain.task import DocumentTask, FewShotTask, Task

REPLY_STARTS: Mapping[Parser, str] = {
    Parser.LINES: "1.",
    Parser.WHOLE: "",
    Parser.QUESTION_ANSWER: "Question:",
    Parser.PARAGRAPHS: "",
    Parser.THOUGHT_LINES: "",
    Parser.MIXED: "Format:",
}
"""How the reply is begun, by parser; empty where a format asks for directives, which come first."""

DIRECTIVES_ASKED = (
    "Begin your reply with one line of JSON that says how a student shall be trained on what you write: learning_rate, "
    "epochs, rank, loss_mask (all or completion), and notes, the number of notes that you write."
)
"""What a prompt begins with where a format asks for directives."""
_KEYS = ("name", "prompt", "parser", "directives", "max_documents")


def builtin_formats() -> tuple[Format, ...]:
    """The formats that come with the teacher."""
    text = (files("teacher") / "formats.yaml").read_text(encoding="utf-8")
    return tuple(format_from_mapping(item, "formats") for item in yaml.safe_load(text))


def format_from_mapping(mapping: Mapping[str, Any], field: str) -> Format:
    """A format from YAML; InvalidInput names every wrong key below `field`."""
    wrong = [
        FieldViolation(f"{field}.{key}", str(value), "one of the keys " + ", ".join(_KEYS))
        for key, value in mapping.items()
        if key not in _KEYS
    ]
    if wrong:
        raise InvalidInput(wrong)
    try:
        parser = Parser(mapping.get("parser", ""))
    except ValueError:
        raise InvalidInput.of(f"{field}.parser", mapping.get("parser", ""), _parsers()) from None
    found = Format(
        name=str(mapping.get("name", "")),
        prompt=str(mapping.get("prompt", "")),
        parser=parser,
        directives=bool(mapping.get("directives", False)),
        max_documents=int(mapping.get("max_documents", 0)),
    )
    check_format(found, field)
    return found


def check_format(format: Format, field: str = "format") -> None:
    """InvalidInput when a format cannot be written by: no name, no prompt, or a negative bound."""
    wrong = []
    if not format.name.strip():
        wrong.append(FieldViolation(f"{field}.name", format.name, "a name that is not empty"))
    if not format.prompt.strip():
        wrong.append(FieldViolation(f"{field}.prompt", format.prompt, "a prompt that is not empty"))
    if not isinstance(format.parser, Parser):
        wrong.append(FieldViolation(f"{field}.parser", str(format.parser), _parsers()))
    if format.max_documents < 0:
        wrong.append(FieldViolation(f"{field}.max_documents", str(format.max_documents), "0 (no limit) or more"))
    if wrong:
        raise InvalidInput(wrong)


def render_prompt(format: Format, task: Task) -> str:
    """The instruction to the writer: the document, or the demonstrations, in the place of `{title}` and `{text}`.

    What a document spells of a chat template's turn markers is undone: it stays inside the message that holds it.
    A prompt that does not name `{text}` gets the text before it: no writer writes about what it has not read.
    """
    title, text = _title_and_text(task)
    prompt = format.prompt if "{text}" in format.prompt else "{title}\n\n{text}\n\n" + format.prompt
    # Split first, so that braces inside the document are never taken for places.
    pieces = prompt.split("{text}")
    told = text.join(piece.replace("{title}", title) for piece in pieces).strip()
    # First, so that the last words, which small models obey, are about the notes; the line of JSON has a form anyway.
    return f"{DIRECTIVES_ASKED}\n\n{told}" if format.directives else told


def reply_start(format: Format) -> str:
    """The beginning of the reply that is given to the writer."""
    return "" if format.directives else REPLY_STARTS[format.parser]


def unreadable_in(task: Task) -> int:
    """Characters of a task that nobody can read, and turn markers that it spells: what is mended before a model reads.

    A task without any, which is nearly all, counts 0.
    """
    return sum(readable(part)[1] for part in _raw_title_and_text(task))


def _title_and_text(task: Task) -> tuple[str, str]:
    title, text = (readable(part)[0] for part in _raw_title_and_text(task))
    return title.strip(), text.strip() if isinstance(task.content, DocumentTask) else text


def _raw_title_and_text(task: Task) -> tuple[str, str]:
    content = task.content
    if isinstance(content, DocumentTask):
        return content.title, content.text
    assert isinstance(content, FewShotTask)
    shown = "\n\n".join(f"Input: {item.input}\nOutput: {item.output}" for item in content.demonstrations)
    return content.instruction, shown


def _parsers() -> str:
    return "one of " + ", ".join(parser.value for parser in Parser)
