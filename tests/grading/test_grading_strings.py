"""String graders: what SQuAD's rules call equal is equal, and scores stay between 0 and 1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.domain.errors import InvalidInput
from tutelage.domain.self_edit import SelfEdit, TextDocument, question_answer
from tutelage.domain.task import Demonstration, DocumentTask, FewShotTask, Question, Quiz, Task
from tutelage.grading import STRING_GRADERS, answer_overlap, grade, normalise

TEXT = st.text(max_size=40)


@pytest.mark.parametrize(
    ("text", "normal"),
    [("The  Eiffel-Tower!", "eiffeltower"), ("An apple a day", "apple day"), ("theatre", "theatre"), ("", "")],
)
def test_normal_form_is_that_of_squad(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("name", "answer", "gold", "score"),
    [
        ("exact", "the Paris.", ("paris",), 1.0),
        ("exact", "in Paris", ("Paris",), 0.0),
        ("contains", "It is Paris, of course", ("Paris",), 1.0),
        ("contains", "a big party", ("art",), 0.0),
        ("contains", "about 40 of them", ("4",), 0.0),
        ("contains", "The answer is The The", ("The",), 1.0),
        ("contains", "Rome", ("Paris", "Rome"), 1.0),
        ("contains", "", ("Paris",), 0.0),
        ("contains", "anything", ("",), 0.0),
        ("f1", "the city of Paris", ("Paris",), 0.5),
        ("f1", "cat dog", ("bird", "dog cat"), 1.0),
        ("f1", "", ("",), 0.0),
        ("exact", "", ("",), 0.0),
    ],
)
def test_scores(name: str, answer: str, gold: tuple[str, ...], score: float) -> None:
    assert grade(name, answer, gold) == pytest.approx(score)


@given(answer=TEXT, gold=st.lists(TEXT, max_size=3))
def test_scores_are_bounded_and_ordered(answer: str, gold: list[str]) -> None:
    scores = {name: grade(name, answer, gold) for name in STRING_GRADERS}
    assert all(0.0 <= score <= 1.0 for score in scores.values())
    assert scores["exact"] <= scores["contains"]
    assert scores["exact"] <= scores["f1"] + 1e-9


@given(TEXT.filter(lambda text: text.strip()))
def test_an_answer_equal_to_the_gold_answer_is_right(text: str) -> None:
    assert all(grade(name, text, [text]) == pytest.approx(1.0) for name in STRING_GRADERS)


def test_an_unknown_grader_is_named() -> None:
    with pytest.raises(InvalidInput, match="'judge'"):
        grade("judge", "a", ("a",))


def test_overlap_counts_answers_that_the_edit_gives_away() -> None:
    questions = (
        Question("1", "Where?", "Paris"),
        Question("2", "Who?", "Ada", aliases=("Countess of Lovelace",)),
        Question("3", "When?", "1843"),
        Question("4", "What?", "art"),
    )
    edit = SelfEdit((TextDocument("A party in paris."), question_answer("Who?", "The Countess of Lovelace")))
    assert answer_overlap(edit, Quiz(questions)) == pytest.approx(0.5)
    assert answer_overlap(edit, Quiz()) == 0.0
    assert answer_overlap(SelfEdit(()), Quiz(questions)) == 0.0


def test_overlap_leaves_out_what_the_task_itself_gives() -> None:
    quiz = Quiz((Question("1", "Where?", "Paris"), Question("2", "When?", "1843")))
    text = "She was in Paris\nin 1843."
    passage = Task("t", DocumentTask("Ada", text))
    note = TextDocument("It was 1843.")
    for own in (TextDocument(f"Ada\n\n{text}"), question_answer("Ada?", text)):
        assert answer_overlap(SelfEdit((own,)), quiz, passage) == 0.0
        assert answer_overlap(SelfEdit((own, note)), quiz, passage) == pytest.approx(0.5)
    few_shot = Task("f", FewShotTask("Answer.", (Demonstration("Where?", "Paris"),)))
    assert answer_overlap(SelfEdit((question_answer("Where?", "Paris"), note)), quiz, few_shot) == pytest.approx(0.5)


def test_overlap_leaves_out_a_passage_however_a_teacher_made_it_readable() -> None:
    quiz = Quiz((Question("1", "Who?", "Ada Thorne"), Question("2", "When?", "1402")))
    for raw, readable in (
        ("\ufeffVelm was foun\u00added by Ada\u200b Thorne in\x07 1402.", "Velm was founded by Ada Thorne in 1402."),
        ("\u202bVelm: Ada Thorne,\u202c 1402", "Velm: Ada Thorne, 1402"),
        ("By Ada Thorne.<|im_end|>In 1402.", "By Ada Thorne.< |im_end|>In 1402."),
    ):
        task = Task("t", DocumentTask("Velm", raw))
        given = TextDocument(f"Velm\n{readable}")
        assert answer_overlap(SelfEdit((given,)), quiz, task) == 0.0
        assert answer_overlap(SelfEdit((given, TextDocument("It was 1402."))), quiz, task) == pytest.approx(0.5)
    shown = Task("f", FewShotTask("Answer.", (Demonstration("When\u200b?", "14\u00ad02"), Demonstration("+", "-"))))
    own = SelfEdit((question_answer("When?", "1402"), question_answer("+", "-")))
    assert answer_overlap(own, quiz, shown) == 0.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("Ada Thorne", "Ada\u200b Thorne\u200e"),
        ("Bel Tarn", "\ufeffBel Tarn"),
        ("Zemlinstrasse", "Zemlin\u00adstrasse"),
        ("\u202bעדה תורן\u202c", "עדה תורן"),
        ("أدا ثورن", "أدا ثورن\u200f"),
        ("1402\x00", "1402"),
    ],
)
def test_what_nobody_sees_makes_no_right_answer_wrong(answer: str, gold: str) -> None:
    for name in STRING_GRADERS:
        assert grade(name, answer, [gold]) == pytest.approx(1.0), name
        assert grade(name, gold, [answer]) == pytest.approx(1.0), name
    assert normalise("two\nlines\u00a0here") == "two lines here"


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        # Signs that a version of Unicode does not know yet are signs.
        ("\U0001fa77", "\U0001fae8"),
        ("\ue000", "\ue001"),
        ("\U0001f3f4\U000e0067\U000e007f", "\U0001f3f4\U000e0073\U000e007f"),
        ("\u200b", "\u200e"),
    ],
)
def test_what_somebody_sees_tells_answers_apart(answer: str, gold: str) -> None:
    for name in STRING_GRADERS:
        assert grade(name, answer, [gold]) < 0.5, name
    # Joiners part words of scripts that are written with them: "a letter" is not "his letters".
    assert grade("exact", "\u0646\u0627\u0645\u0647\u200c\u0627\u06cc", ["\u0646\u0627\u0645\u0647\u0627\u06cc"]) == 0
