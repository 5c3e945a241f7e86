"""What chat models put around what was asked for: greetings, fences, JSON over several lines."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.formats import builtin_formats
from teacher.parsing import parse_completion
from tutelage.domain.policy import Format, Parser
from tutelage.domain.self_edit import Directives, Rejection, SelfEdit, TextDocument
from tutelage.domain.task import DocumentTask, Task

TASK = Task("t", DocumentTask("Velm", "Velm is a town."))
DIRECTED = Format("own", "{title}: {text}", Parser.LINES, directives=True)
MIXED = next(item for item in builtin_formats() if item.parser is Parser.MIXED)
CHOICE = {"learning_rate": 0.001, "epochs": 3}
NOTES = "Salt was sold there.\nIt had a bridge."


@pytest.mark.parametrize(
    ("before", "indent", "after", "preamble"),
    [
        ("", None, "", 0),
        ("", 2, "", 0),
        ("```json\n", None, "```\n", 1),
        ("```\n", 4, "```\n\n", 1),
        ("Sure! Here is the JSON:\n\n", 2, "", 1),
        ("Here you are:\n```json\n", 2, "```\n", 2),
        ("Sure!\n\nOne moment.\n\nHere you are:\n\n```json\n", 2, "\n```\n", 4),
    ],
)
def test_directives_are_found_where_a_chat_model_puts_them(
    before: str, indent: int | None, after: str, preamble: int
) -> None:
    written = f"{before}{json.dumps(CHOICE, indent=indent)}\n{after}{NOTES}"
    found = parse_completion(written, DIRECTED, TASK)
    assert isinstance(found.result, SelfEdit), found.result
    assert found.result.directives == Directives(learning_rate=0.001, epochs=3)
    notes = [document.text for document in found.result.documents[1:] if isinstance(document, TextDocument)]
    assert [note.split("\n")[-1] for note in notes] == NOTES.split("\n")
    assert found.repairs.get("preamble", 0) == preamble


@pytest.mark.parametrize(
    "written",
    [
        "one\ntwo\nthree\nfour\nfive\n{}\nA note.",
        '{"epochs": 3} A note.',
        '{"epochs": 3',
        '["epochs"]\nA note.',
        '```json\n{"epochs": NaN}\n```\nA note.',
        '```json\n{"epochs": 3, "epochs": 4}\n```\nA note.',
        "{" * 5000,
    ],
)
def test_what_does_not_begin_with_an_object_is_rejected(written: str) -> None:
    found = parse_completion(written, DIRECTED, TASK)
    assert isinstance(found.result, Rejection)
    assert found.result.field == "directives"


@given(st.text(max_size=200), st.text(max_size=80))
def test_no_reply_raises(before: str, after: str) -> None:
    for format in (DIRECTED, MIXED):
        parse_completion(f"{before}\n{json.dumps(CHOICE)}\n{after}", format, TASK)
        parse_completion(f"{before}\nFormat: rewrite\n{after}", format, TASK)


@pytest.mark.parametrize(
    ("written", "chosen", "preamble"),
    [
        ("Format: rewrite\nVelm is a place where salt was sold.", "rewrite", 0),
        ("Sure! Here are the notes.\nFormat: rewrite\nVelm is a place where salt was sold.", "rewrite", 1),
        ("Of course.\n\n**rewrite**\nVelm is a place where salt was sold.", "rewrite", 1),
    ],
)
def test_the_name_of_a_format_may_stand_behind_a_greeting(written: str, chosen: str, preamble: int) -> None:
    found = parse_completion(written, MIXED, TASK)
    assert isinstance(found.result, SelfEdit), found.result
    assert found.chosen_format == chosen
    assert found.repairs.get("preamble", 0) == preamble


def test_behind_the_name_of_a_format_paragraphs_stay_apart() -> None:
    found = parse_completion("rewrite\nSalt was sold there,\nit is said.\n\nA bridge was built.", MIXED, TASK)
    assert isinstance(found.result, SelfEdit), found.result
    assert len(found.result.documents) == 3


def test_a_note_that_has_the_name_of_a_format_in_it_names_none() -> None:
    found = parse_completion("Velm sold salt.\nThe town did rewrite its laws in 1402.\nA third.", MIXED, TASK)
    assert isinstance(found.result, Rejection)
    assert found.result.field == "format"
