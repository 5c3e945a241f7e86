"""A note that is little but the passage is none: the passage is studied once already."""

from __future__ import annotations

import pytest

from teacher.parsing import parse_completion
from tutelage.domain.policy import Format, Parser
from tutelage.domain.self_edit import Rejection, RejectionReason, SelfEdit
from tutelage.domain.task import DocumentTask, Task

PASSAGE = (
    "The Orr is a river of the north. It rises in the hills above Velm and meets the sea at Harrow. "
    "Salt was carried on it for three hundred years, until the railway came in 1871."
)


@pytest.mark.parametrize(
    "copy",
    [
        f"The Orr\n\n{PASSAGE}",
        f'"{PASSAGE}"',
        f"Here it is again. {PASSAGE}",
        PASSAGE[: PASSAGE.index(" until")],
    ],
)
@pytest.mark.parametrize("parser", [Parser.WHOLE, Parser.PARAGRAPHS])
def test_most_of_the_passage_again_is_no_note(copy: str, parser: Parser) -> None:
    task = Task("orr", DocumentTask("The Orr", PASSAGE))
    parsed = parse_completion(copy, Format("own", "Rewrite.\n{title}\n\n{text}", parser), task)
    assert isinstance(parsed.result, Rejection), parsed
    assert parsed.result.reason is RejectionReason.EMPTY
    assert parsed.repairs.get("echo", 0) + parsed.duplicates_removed >= 1


def test_a_sentence_of_the_passage_is_a_note() -> None:
    task = Task("orr", DocumentTask("The Orr", PASSAGE))
    said = "Salt was carried on it for three hundred years."
    parsed = parse_completion(said, Format("own", "List.\n{title}\n\n{text}", Parser.LINES), task)
    assert isinstance(parsed.result, SelfEdit)
    assert len(parsed.result.documents) == 2
