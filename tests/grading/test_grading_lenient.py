"""The lenient grader: right in other words is right, wrong in the same words is wrong, and nothing raises."""

from __future__ import annotations

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.grading import STRING_GRADERS, grade
from tutelage.grading.likeness import NAMES, likeness
from tutelage.grading.number_words import number_at
from tutelage.grading.terms import stem, terms
from tutelage.grading.vocabulary import vocabulary

SAMPLE = json.loads((Path(__file__).parents[2] / "benchmarks/graded_sample.json").read_text(encoding="utf-8"))
TEXT = st.text(max_size=60)
WORDS = st.lists(
    st.sampled_from(["not", "Paris", "17", "seventeen", "km", "60", "205 BC", "million", "1918–1938"]), max_size=8
)


@pytest.mark.parametrize("pair", SAMPLE, ids=lambda pair: f"{pair['gold']} / {pair['answer']}"[:60])
def test_pairs_written_for_this_project(pair: dict[str, object]) -> None:
    score = grade("lenient", str(pair["answer"]), [str(pair["gold"])], str(pair["question"]))
    assert score == float(bool(pair["correct"]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two hundred and five thousand km", "205000 kilometr"),
        ("1.5 million", "1500000"),
        ("1,200,000", "1200000"),
        ("twenty-first", "21"),
        ("21st", "21"),
        ("2007-07-03", "3 juli 2007"),
        ("205 BCE", "205 bc"),
        ("U.S.", "us"),
        ("the United States of America", "the us"),
        ("80%", "80 percent"),
        ("eighty per cent", "80 percent"),
        ("1918–1938", "1918 1938"),
        ("hundreds of sheep", "hundr of sheep"),
        ("five six", "5 6"),
        ("one hundred and", "100 and"),
        ("Zoë's", "zoe"),
        ("5km²", "5 squarekilometr"),
        ("...", ""),
    ],
)
def test_terms(text: str, expected: str) -> None:
    assert " ".join(term.text for term in terms(text)) == expected


def test_number_words_of_a_scale_alone_are_no_number() -> None:
    assert number_at(["million"], 0) is None
    assert number_at(["three", "hundred", "and", "four"], 0) == (304.0, 4)
    assert number_at(["nine" * 40], 0) is None


@pytest.mark.parametrize("name", ["lenient", "probable"])
def test_what_the_question_says_is_no_evidence(name: str) -> None:
    question = "What shape is the chamber?"
    assert grade(name, "It is a chamber.", ["octagonal chamber"], question) < 0.5
    assert grade(name, "It is octagonal.", ["octagonal chamber"], question) >= 0.5


def test_a_name_of_the_question_is_no_misspelling_of_the_answer() -> None:
    question = "Who was the first of the Artaxiads?"
    assert grade("lenient", "The first of the Artaxiads was Tigranes.", ["Artaxias"], question) == 0.0


def test_denied_answers_are_wrong_unless_the_gold_answer_denies() -> None:
    assert likeness("It was not Ada.", "Ada").denied == 1.0
    assert likeness("Not Bo, but Ada.", "Ada").denied == 0.0
    assert likeness("It was not allowed.", "not allowed").denied == 0.0


def test_best_of_several_gold_answers() -> None:
    assert (
        grade("lenient", "He came from a town called Velm.", ["Hesk", "the town of Velm"], "Where did he come from?")
        == 1.0
    )


def test_naming_everything_earns_less_than_naming_the_answer() -> None:
    everything = (
        "Possibly " + " or ".join(f"Name{chr(97 + i)} Other{chr(97 + i)}" for i in range(20)) + " or Ada Thorne"
    )
    short = grade("probable", "Ada Thorne", ["Ada Thorne"], "Who?")
    assert grade("probable", everything, ["Ada Thorne"], "Who?") < short


@settings(max_examples=200, deadline=None)
@given(answer=st.one_of(TEXT, WORDS.map(" ".join)), gold=st.one_of(TEXT, WORDS.map(" ".join)), question=TEXT)
def test_bounded_and_total(answer: str, gold: str, question: str) -> None:
    assert all(0.0 <= grade(name, answer, [gold], question) <= 1.0 for name in STRING_GRADERS)
    assert all(0.0 <= value <= 1.0 for value in likeness(answer, gold, question).values())
    assert grade("lenient", answer, [gold], question) == float(grade("probable", answer, [gold], question) >= 0.5)


@given(gold=TEXT.filter(lambda text: text.strip()))
def test_the_gold_answer_itself_is_right(gold: str) -> None:
    assert grade("probable", gold, [gold], "What?") == 1.0


def test_case_and_spaces_do_not_count() -> None:
    draw = random.Random(1)
    for pair in SAMPLE:
        shaken = "  ".join(word.upper() if draw.random() < 0.5 else word for word in pair["answer"].split())
        one, other = (grade("probable", text, [pair["gold"]], pair["question"]) for text in (pair["answer"], shaken))
        assert one == pytest.approx(other)


def test_a_runaway_costs_no_more_than_its_beginning() -> None:
    assert len(terms("word " * 100_000)) <= 4000
    assert grade("lenient", "x" * 100_000, ["x"]) == 0.0


def test_vocabulary_is_in_the_form_that_terms_compares() -> None:
    known = vocabulary()
    assert known.small_numbers["thirteenth"] == 13
    assert known.small_numbers["ninety"] == 90
    assert len(known.months) == 12
    words = [*known.stop_words, *known.titles, *known.negations, *known.units, *known.abbreviations, *known.phrases]
    assert all(word == word.casefold() for word in words)
    assert len(NAMES) == len(likeness("a", "b").values())


def test_threads_that_grade_at_once_get_the_terms_that_one_alone_gets() -> None:
    words = [
        f"{head}{tail}" for head in ("nation", "hope", "relat", "organ") for tail in ("ational", "ization", "fulness")
    ]
    alone = {word: stem.__wrapped__(word) for word in words}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            found = [
                *threads.map(
                    lambda n: {word: stem.__wrapped__(word) for word in words[n:] + words[:n]}, list(range(12)) * 25
                )
            ]
    finally:
        sys.setswitchinterval(before)
    assert all(item == alone for item in found)
