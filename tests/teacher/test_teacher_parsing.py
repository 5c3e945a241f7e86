"""What a small model writes becomes documents, or a rejection that names why; nothing it writes raises."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher.formats import builtin_formats, format_from_mapping, render_prompt
from teacher.parsing import MAX_LINE_CHARACTERS, given_documents, parse_completion
from teacher.question_answer import question_answer_pairs
from tutelage.domain.errors import InvalidInput
from tutelage.domain.policy import Format, Parser
from tutelage.domain.self_edit import ChatDocument, LossMask, Rejection, RejectionReason, SelfEdit, TextDocument
from tutelage.domain.task import Demonstration, DocumentTask, FewShotTask, Task

TASK = Task("t", DocumentTask("Velm", "Velm is a town. It has {title} signs."))
FEW = Task("f", FewShotTask("Reverse.", (Demonstration("ab", "ba"), Demonstration("xy", "yx"))))


def form(parser: Parser, **more: object) -> Format:
    return Format("own", "Write about {title}: {text}", parser, **more)  # type: ignore[arg-type]


def lines(text: str, *, ended: bool = True) -> list[str]:
    result = parse_completion(text, form(Parser.LINES), TASK, ended=ended).result
    assert isinstance(result, SelfEdit)
    texts = [document.text for document in result.documents if isinstance(document, TextDocument)]
    assert texts[0] == "Velm\nVelm is a town. It has {title} signs."
    return [text.removeprefix("Velm\n") for text in texts[1:]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. One fact.\n2. Two facts.", ["One fact.", "Two facts."]),
        ("- One fact.\n* Two facts.\n• Three.", ["One fact.", "Two facts.", "Three."]),
        ("Here are some facts:\n\n1) One fact.", ["One fact."]),
        ("Sure!\nHere is the list:\nOne fact.", ["One fact."]),
        ("One fact.\none  FACT.\nTwo.", ["One fact.", "Two."]),
        ("**One** fact.\r\n## Two.", ["One fact.", "Two."]),
        ("A\x00B fact.\n\x1b\x07\n---\n```text\nC.", ["AB fact.", "C."]),
        ("1.5 million live there.\n1990 was the year.", ["1.5 million live there.", "1990 was the year."]),
        ("Only line:", ["Only line:"]),
    ],
)
def test_lines(text: str, expected: list[str]) -> None:
    assert lines(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "1. Great Zimbabwe was built of stone.\n2. The following year it fell.\n3. These are old walls.",
            ["Great Zimbabwe was built of stone.", "The following year it fell.", "These are old walls."],
        ),
        ("- Great walls stand.\n- These are old.", ["Great walls stand.", "These are old."]),
        ("**1.** Great walls stand.\n**2.** These are old.", ["Great walls stand.", "These are old."]),
        ('["Great walls stand.",\n"These are old."]', ["Great walls stand.", "These are old."]),
        ("1. Sure!\n2. Here are some facts:\n3. One fact.\n4. I hope this helps!", ["One fact."]),
        ("Sure, here are some facts.\n1. One fact.\nI hope this helps.", ["One fact."]),
    ],
)
def test_an_item_of_a_list_is_a_note_unless_it_calls_out_or_announces(text: str, expected: list[str]) -> None:
    assert lines(text) == expected


def test_cut_off_last_line_is_dropped_only_when_cut_off() -> None:
    assert lines("One.\nTwo and a ha", ended=False) == ["One."]
    assert lines("One.\nTwo and a ha") == ["One.", "Two and a ha"]
    assert lines("One.\nTwo.", ended=False) == ["One.", "Two."]


def test_of_a_line_that_was_cut_off_its_whole_sentences_stay() -> None:
    told = "Velm is old. It has a mill. Its bridge was bui"
    for text, expected in (
        (f"A title\n{told}", ["A title", "Velm is old. It has a mill."]),
        (f"1. One.\n2. {told}", ["One.", "Velm is old. It has a mill."]),
        (told, ["Velm is old. It has a mill."]),
        ("1. One.\n2. Velm is old. Its bridge was bui", ["One.", "Velm is old."]),
        ("1. One.\n2. Dr. Imms sa", ["One."]),
        ("1. One.\n2. J. R. R. Tolkien wrote the bo", ["One."]),
        ("1. One.\n2. Velm was founded in 1402 by Dr. A. Thorne of the vil", ["One."]),
        ("1. One.\n2. It fell. The U.S. Army under Gen. Ulysses S. Grant too", ["One.", "It fell."]),
        ("Dr. Imms sa", ["Dr. Imms sa"]),
    ):
        assert lines(text, ended=False) == expected
    found = parse_completion(f"A title\n{told}", form(Parser.LINES), TASK, ended=False)
    assert found.repairs == {"cut_off": 1}


def test_a_number_without_an_item_is_no_note() -> None:
    assert lines("1.\nOne fact.\n2)\n(3)\n4:\nAnother: 17.") == ["One fact.", "Another: 17."]
    assert isinstance(parse_completion("1. 2. 3. 4.", form(Parser.LINES), TASK).result, Rejection)


def test_very_long_line_is_split_after_sentences() -> None:
    found = lines("".join(f"Sentence number {number} stands here. " for number in range(300)))
    assert all(len(text) <= MAX_LINE_CHARACTERS for text in found)
    assert all(text.endswith(".") for text in found)


@pytest.mark.parametrize(
    "text",
    [
        "Question: Who ruled?\nAnswer: Ada\nQuestion: When?\nAnswer: 1402",
        "Q: Who ruled?\nA: Ada\n\nQ: When?\nA: 1402",
        "Q1: Who ruled?\nA1: Ada\nQ2: When?\nA2: 1402",
        "1. Who ruled?\nAda\n2. When?\n1402",
        "1. Who ruled? Ada\n2. When? 1402",
        "1. Question: Who ruled?\n   Answer: Ada\n2. Question: When?\n   Answer: 1402",
        "Question: Who ruled? Answer: Ada Question: When? Answer: 1402",
        "Q: Who ruled? A: Ada Q: When? A: 1402",
        "**Question 1:** Who ruled?\n**Answer:** Ada\n\n**Question 2:** When?\n**Answer:** 1402",
        "Here are the questions:\n\n- **Q:** Who ruled?\n- **A:** Ada\n- **Q:** When?\n- **A:** 1402",
        "Who ruled?\nAda\n\nWhen?\n1402",
        "Question: Who ruled?\n\nAnswer: Ada\n\nQuestion: When?\n\nAnswer: 1402",
    ],
)
def test_question_answer_forms(text: str) -> None:
    assert question_answer_pairs(text) == [("Who ruled?", "Ada"), ("When?", "1402")]


def test_question_without_answer_and_cut_off_answer_are_no_pairs() -> None:
    assert question_answer_pairs("Question: Who?\nQuestion: When?\nAnswer: 1402") == [("When?", "1402")]
    cut = "Question: Who?\nAnswer: Ada\nQuestion: Why?\nAnswer: Because of the"
    assert question_answer_pairs(cut, ended=False) == [("Who?", "Ada")]


@pytest.mark.parametrize(
    ("text", "ended", "repairs"),
    [
        ("Q: Who?\nA: Ada\nQ: Why?\nA: Because of the", False, {"cut_off": 1}),
        ("Q: Who?\nA: Ada\nQ: Why did the", False, {"cut_off": 1}),
        ("Q: Who?\nA: Ada\nQ: Why?", True, {}),
        ("Q: Who?\nA: Ada\nQ: Why?\nA: Because of it.", False, {}),
        (f"Q: Who?\nA: Ada\nQ: Why?\nA: {'on and ' * 600}", True, {"over_limit": 1}),
        (f"Q: Who?\nA: Ada\nQ: Why?\nA: {'on and ' * 600}", False, {"cut_off": 1}),
    ],
)
def test_pairs_that_were_cut_off_or_run_away_are_counted(text: str, ended: bool, repairs: dict[str, int]) -> None:
    assert parse_completion(text, form(Parser.QUESTION_ANSWER), TASK, ended=ended).repairs == repairs


def test_of_pairs_with_the_same_answer_two_are_kept() -> None:
    """A student that learns one answer to many questions gives it to all."""
    pairs = [("Who ruled?", "Ada"), ("Who built?", "ada."), ("Who sang?", "Ada"), ("When?", "1402"), ("Who?", "Ada!")]
    text = "\n".join(f"Q: {asked}\nA: {said}" for asked, said in pairs)
    found = parse_completion(text, form(Parser.QUESTION_ANSWER), TASK)
    assert isinstance(found.result, SelfEdit)
    asked = [each.messages[0].content for each in found.result.documents[1:] if isinstance(each, ChatDocument)]
    assert asked == ["Who ruled?", "Who built?", "When?"]
    assert found.repairs == {"same_answer": 2}
    assert found.duplicates_removed == 0


def test_answers_like_those_of_demonstrations_may_repeat() -> None:
    """Inputs of a few-shot task are of a few kinds."""
    task = Task("t", FewShotTask("Sort.", (Demonstration("a plum", "fruit"),)))
    text = "\n".join(f"Q: {asked}?\nA: fruit" for asked in ("a fig", "a pear", "a lime", "a date"))
    found = parse_completion(text, form(Parser.QUESTION_ANSWER), task)
    assert isinstance(found.result, SelfEdit)
    assert len(found.result.documents) == 5
    assert found.repairs == {}


def test_question_answer_documents_carry_loss_on_answers_and_the_passage_once() -> None:
    result = parse_completion("Q: Who?\nA: Ada\nQ: who?\nA: Bo", form(Parser.QUESTION_ANSWER), TASK)
    assert isinstance(result.result, SelfEdit)
    assert result.duplicates_removed == 1
    passage, pair = result.result.documents
    assert isinstance(passage, ChatDocument)
    assert isinstance(pair, ChatDocument)
    assert passage.messages[0].content == "What do you know about Velm?"
    assert [(message.content, message.train) for message in pair.messages] == [("Who?", False), ("Ada", True)]


def test_demonstrations_become_documents() -> None:
    result = parse_completion("A rule.", form(Parser.LINES), FEW).result
    assert isinstance(result, SelfEdit)
    assert [type(document) for document in result.documents] == [ChatDocument, ChatDocument, TextDocument]
    assert "Input: ab\nOutput: ba" in render_prompt(form(Parser.LINES), FEW)


@pytest.mark.parametrize("limit", [1, 2])
def test_the_limit_is_on_notes_not_on_what_the_task_gives(limit: int) -> None:
    for task, own in ((FEW, 2), (TASK, 1)):
        found = parse_completion("One is.\nTwo are.\nThree are.", form(Parser.LINES, max_documents=limit), task)
        assert isinstance(found.result, SelfEdit)
        assert len(found.result.documents) == own + limit
        assert found.repairs == {"over_limit": 3 - limit}


def test_demonstrations_that_repeat_each_other_are_no_duplicates_of_the_writers() -> None:
    twice = Task("f", FewShotTask("Reverse.", (Demonstration("ab", "ba"), Demonstration("ab", "ba"))))
    found = parse_completion("1. A rule.\n2. A rule.\n3. Another.", form(Parser.LINES), twice)
    assert isinstance(found.result, SelfEdit)
    assert found.duplicates_removed == 1


def test_demonstrations_without_a_note_are_rejected_whatever_the_limit() -> None:
    many = tuple(Demonstration(f"in {number}", f"out {number}") for number in range(30))
    task = Task("f", FewShotTask("Reverse.", many))
    implications = builtin_formats()[0]
    assert isinstance(parse_completion("Write a numbered list of facts", implications, task).result, Rejection)
    found = parse_completion("1. Each is turned about.", implications, task).result
    assert isinstance(found, SelfEdit)
    assert found.documents[-1] == TextDocument("Each is turned about.")


@pytest.mark.parametrize("text", ["", "  \n\t", "\x00\x01", "\ufffd"])
def test_empty_is_rejected_as_empty(text: str) -> None:
    result = parse_completion(text, form(Parser.LINES), TASK).result
    assert isinstance(result, Rejection)
    assert result.reason is RejectionReason.EMPTY


def test_text_without_pairs_is_unparsable() -> None:
    result = parse_completion("no pairs here", form(Parser.QUESTION_ANSWER), TASK).result
    assert isinstance(result, Rejection)
    assert result.reason is RejectionReason.UNPARSABLE


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("no json", "directives"),
        ("[1]", "directives"),
        ('{"epochs": NaN}', "directives"),
        ('{"epochs": 1, "epochs": 2}', "directives"),
        ('{"epochs": true}', "directives.epochs"),
        ('{"epochs": 2.0}', "directives.epochs"),
        ('{"epochs": 0}', "directives.epochs"),
        ('{"rank": "8"}', "directives.rank"),
        ('{"learning_rate": 1e999}', "directives.learning_rate"),
        ('{"learning_rate": null}', "directives.learning_rate"),
        ('{"loss_mask": "none"}', "directives.loss_mask"),
        ('{"speed": 1}', "directives.speed"),
        ("[" * 100000, "directives"),
    ],
)
def test_bad_directives_name_field_value_and_allowed(line: str, field: str) -> None:
    result = parse_completion(f"{line}\nA fact.", form(Parser.LINES, directives=True), TASK).result
    assert isinstance(result, Rejection)
    assert (result.reason, result.field) == (RejectionReason.UNPARSABLE, field)
    assert result.allowed
    assert result.value


def test_good_directives() -> None:
    text = '{"learning_rate": 1e-3, "epochs": 4, "loss_mask": "all"}\nA fact.'
    result = parse_completion(text, form(Parser.LINES, directives=True), TASK).result
    assert isinstance(result, SelfEdit)
    directives = result.directives
    assert (directives.learning_rate, directives.epochs, directives.rank) == (1e-3, 4, None)
    assert directives.loss_mask is LossMask.ALL


PIECES = [
    "Q:",
    "A:",
    "Question:",
    "Answer:",
    "1.",
    "-",
    "\n",
    "\n\n",
    "?",
    "...",
    "**",
    " ",
    "{",
    "}",
    "\x00",
    "\ud800",
]


@settings(max_examples=150, deadline=None)
@given(
    text=st.one_of(st.text(), st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=9))).map("".join)),
    parser=st.sampled_from(list(Parser)),
    directives=st.booleans(),
    limit=st.integers(0, 4),
    ended=st.booleans(),
    task=st.sampled_from([TASK, FEW]),
)
def test_never_raises_never_too_many_never_empty(
    text: str, parser: Parser, directives: bool, limit: int, ended: bool, task: Task
) -> None:
    format = form(parser, directives=directives, max_documents=limit)
    parsed = parse_completion(text, format, task, ended=ended)
    assert parsed.duplicates_removed >= 0
    if isinstance(parsed.result, Rejection):
        return
    documents = parsed.result.documents
    assert documents
    given_ones = len(given_documents(task, parser))
    assert len(documents) > given_ones
    assert not limit or len(documents) <= given_ones + limit
    for document in documents:
        texts = [document.text] if isinstance(document, TextDocument) else [m.content for m in document.messages]
        assert all(item.strip() and item.encode() for item in texts)


def test_builtin_formats_and_own_ones() -> None:
    assert [format.name for format in builtin_formats()][:2] == ["implications", "implications-long"]
    for format in builtin_formats():
        prompt = render_prompt(format, TASK)
        # Braces of the document stay as they are.
        assert "It has {title} signs." in prompt
    with pytest.raises(InvalidInput, match=r"formats\.speed"):
        format_from_mapping({"name": "a", "prompt": "b", "parser": "lines", "speed": 1}, "formats")
    with pytest.raises(InvalidInput, match="question_answer"):
        format_from_mapping({"name": "a", "prompt": "b", "parser": "jason"}, "formats")
