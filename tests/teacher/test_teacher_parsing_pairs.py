"""Question and answer pairs in every shape that models fall into, and those that are no pairs."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from teacher.question_answer import question_answer_pairs

SHAPES = [
    "Question: Who ruled?\nOptional answer: Ada\nQuestion: When?\nOptional answer: 1402",
    "Question: Who ruled? Optional answer: Ada Question: When? Optional answer: 1402",
    "Q. Who ruled?\nA. Ada\nQ. When?\nA. 1402",
    "Q1) Who ruled?\nA1) Ada\nQ2) When?\nA2) 1402",
    "### Question 1\nWho ruled?\n### Answer\nAda\n### Question 2\nWhen?\n### Answer\n1402",
    "**Question 1**\nWho ruled?\n\n**Answer**\nAda\n\n**Question 2**\nWhen?\n\n**Answer**\n1402",
    "[Question] Who ruled?\n[Answer] Ada\n[Question] When?\n[Answer] 1402",
    "<question>Who ruled?</question>\n<answer>Ada</answer>\n<question>When?</question>\n<answer>1402</answer>",
    "Question 1 - Who ruled?\nAnswer 1 - Ada\nQuestion 2 - When?\nAnswer 2 - 1402",
    "Question #1: Who ruled?\nAnswer #1: Ada\nQuestion #2: When?\nAnswer #2: 1402",
    '[{"question": "Who ruled?", "answer": "Ada"},\n {"question": "When?", "answer": 1402},\n {"question": "Wh',
    '```json\n{"Q": "Who ruled?", "A": "Ada"}\n{"Q": "When?", "A": "1402",}\n```',
    "| Question | Answer |\n|---|---|\n| Who ruled? | Ada |\n| When? | 1402 |",
    "| 1 | Who ruled? | Ada |\n| 2 | When? | 1402 |",
    "Who ruled? - Ada\nWhen? - 1402",
    "1. Who ruled? -> Ada\n2. When? => 1402",
    "Sure! Here are some:\n\nQuestion: Who ruled?\nThe answer: Ada\n\nQuestion: When?\nCorrect answer is: 1402",
    "Question: Who ruled?\nA) Ada\nB) Bo\nC) Cy\nAnswer: A\nQuestion: When?\nA) 1300\nB) 1402\nAnswer: B) 1402",
    "Question: Who ruled? (Answer: Ada) Question: When? (Answer: 1402)",
    "Question: Who ruled?\n- Ada\nQuestion: When?\n- 1402",
    "Question: Who ruled? | Answer: Ada\nQuestion: When? | Answer: 1402",
    "QUESTION: Who ruled?\nANSWER: Ada\nQUESTION: When?\nANSWER: 1402",
    "Question: Who ruled?\nAnswer:\nAda\n\nQuestion: When?\nAnswer:\n1402",
    "Question: Who ruled?\nAnswer: Answer: Ada\nQuestion: When?\nAnswer: 1402",
    "1. **Who ruled?**\n   - *Ada*\n2. **When?**\n   - *1402*",
    "Questions:\n1. Who ruled?\n2. When?\n\nAnswers:\n1. Ada\n2. 1402",
    'Question: "Who ruled?"\nAnswer: "Ada"\nQuestion: "When?"\nAnswer: "1402"',
]
WORD = st.from_regex(r"[B-PR-Z][b-z]{2,8}", fullmatch=True)
CLEAN_QUESTION = st.lists(WORD, min_size=1, max_size=5).map(lambda words: " ".join(words) + "?")
CLEAN_ANSWER = st.lists(WORD, min_size=1, max_size=4).map(" ".join)


@pytest.mark.parametrize("text", SHAPES)
def test_shapes(text: str) -> None:
    assert question_answer_pairs(text) == [("Who ruled?", "Ada"), ("When?", "1402")]


def test_an_answer_that_denies_is_one() -> None:
    for answer in ("None", "No", "No answer satisfied her", "Nobody knows"):
        assert question_answer_pairs(f"Q: What of it?\nA: {answer}") == [("What of it?", answer)]


def test_other_scripts_ask_too() -> None:
    assert question_answer_pairs("Q：谁统治？\nA：艾达") == [("谁统治？", "艾达")]
    assert question_answer_pairs("Question: من حكم؟\nAnswer: آدا") == [("من حكم؟", "آدا")]


@pytest.mark.parametrize(
    "text",
    [
        "Question: Who ruled?\nAnswer: [your answer]",
        "Question: Who ruled?\nAnswer: Not mentioned in the text.",
        "Question: Who ruled?\nAnswer: No answer",
        "Question: Who ruled?\nAnswer: No answer is given.",
        "Question: Who ruled?\nAnswer: ...",
        "Question: Who ruled?\nA) Ada\nB) Bo",
        "Answer: Ada",
        "Optional answer: Ada",
        "Who ruled?",
    ],
)
def test_no_pairs(text: str) -> None:
    assert question_answer_pairs(text) == []


@given(
    pairs=st.lists(st.tuples(CLEAN_QUESTION, CLEAN_ANSWER), min_size=1, max_size=6),
    form=st.sampled_from(
        ["Question: {}\nAnswer: {}\n", "Q: {}\nA: {}\n\n", "**Question:** {}\n**Answer:** {}\n", "{}\n{}\n\n"]
    ),
)
def test_clean_pairs_come_back_in_order(pairs: list[tuple[str, str]], form: str) -> None:
    assert question_answer_pairs("".join(form.format(*pair) for pair in pairs)) == pairs


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=80),
        st.lists(
            st.sampled_from(
                [
                    "Q",
                    "A",
                    ":",
                    ".",
                    ")",
                    "Question",
                    "Answer",
                    " ",
                    "\n",
                    "?",
                    "|",
                    '"',
                    "{",
                    "}",
                    "1",
                    "-",
                    "**",
                    "Ada",
                ]
            ),
            max_size=30,
        ).map("".join),
    )
)
def test_pairs_are_never_empty(text: str) -> None:
    for question, answer in question_answer_pairs(text) + question_answer_pairs(text, ended=False):
        assert any(character.isalnum() for character in question)
        assert any(character.isalnum() for character in answer)


def test_a_runaway_question_takes_no_later_pair_with_it() -> None:
    runaway = "Question: It goes on\n" + "and on and on without an end\n" * 200
    found = question_answer_pairs(runaway + "Who ruled?\nAda\n\nWhen?\n1402")
    assert found[-2:] == [("Who ruled?", "Ada"), ("When?", "1402")]


def test_an_answer_that_was_cut_off_in_a_table_or_a_list_of_answers_is_left_out() -> None:
    table = "| Question | Answer |\n|---|---|\n| Who? | Ada |\n| When? | in the year 14"
    keyed = "1. Who?\n2. When?\nAnswers:\n1. Ada\n2. in the year 14"
    for text in (table, keyed):
        repairs: Counter[str] = Counter()
        assert question_answer_pairs(text, ended=False, repairs=repairs) == [("Who?", "Ada")]
        assert repairs["cut_off"] == 1
        assert len(question_answer_pairs(text)) == len(question_answer_pairs(f"{text}02.", ended=False)) == 2
    for behind in (" |", " |\n", " |\n\nLet me kn", " |\n\nMore of what happened in the year 1402"):
        assert len(question_answer_pairs(f"{table}02{behind}", ended=False)) == 2
