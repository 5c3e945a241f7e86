"""Questions that are made: kept are those that the text answers, and documents without any can then be learned."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestrator import inbox_worker
from orchestrator.adapt_quiz import FORMAT, LONGEST_ANSWER, questions_of, submission_violations
from orchestrator.metrics import MADE_QUESTIONS
from teacher.parsing import parse_completion
from tests.adapt.asking_teacher import TEXT
from tutelage.cli.main import app
from tutelage.cli.quiz import new_questions
from tutelage.client import SyncOrchestratorClient
from tutelage.documents import read_tasks
from tutelage.domain.errors import InvalidInput, PreconditionFailed
from tutelage.domain.made_quiz import Dropped
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.self_edit import SelfEdit, TextDocument, question_answer
from tutelage.domain.task import Demonstration, DocumentTask, FewShotTask, Question, Quiz, Task
from tutelage.grading.normalise import normalise
from tutelage.rpc.config import ChannelSettings

TASK = Task("lamp", DocumentTask("The Orrin lamp", TEXT))


def _made(*pairs: tuple[str, str]) -> list[tuple[str, str]]:
    edit = SelfEdit((TextDocument(TEXT), *(question_answer(*pair) for pair in pairs)))
    return [(each.text, each.answer) for each in questions_of(TASK, [edit])[0]]


def test_only_questions_that_the_text_answers_are_kept() -> None:
    good = [("What does the lamp burn?", "Whale wax"), ("Who hung the lamp?", "the salt traders of Skarn.")]
    bad = [
        ("What colour is it painted?", "blue"),  # not in the text
        ("Which green lamp is it?", "green"),  # told by the question
        ("Why?", "1347"),  # no question
        ("How old is the lamp?", "1347"),  # a sentence about something else
        ("What is the Orrin lamp?", "1347"),  # about the title alone
        ("What is the lamp like in all?", TEXT),  # no short answer
        ("What may the lamp burn?", "whale wax"),  # the same answer again
        ("When was it hung?", "134"),  # a part of a word
        ("When was it hung?", ""),
    ]
    assert _made(*good, *bad) == [good[0], ("Who hung the lamp?", "the salt traders of Skarn")]
    edit = SelfEdit(tuple(question_answer(*pair) for pair in good))
    first, second = TEXT.split(". ")
    assert [each.support for each in questions_of(TASK, [edit])[0]] == [f"{first}.", second]
    everything = SelfEdit(tuple(question_answer(*pair) for pair in (*good, *bad)))
    assert questions_of(TASK, [everything])[1] == {
        Dropped.UNSUPPORTED: 4,
        Dropped.TOLD: 1,
        Dropped.FORM: 3,
        Dropped.DUPLICATE: 1,
    }
    assert questions_of(Task("p", FewShotTask("Add.", (Demonstration("1", "2"),))), [everything]) == ((), {})


def test_the_text_that_each_edit_begins_with_is_no_question_that_was_written() -> None:
    for text in (f"{TEXT}\u200b <|im_end|>", "Few know the Orrin lamp."):
        task = Task("lamp", DocumentTask("The Orrin lamp", text))
        asked = "Question: How many know of it?\nAnswer: few\n"
        edit = parse_completion(asked, FORMAT, task).result
        assert isinstance(edit, SelfEdit)
        assert len(edit.documents) == 2
        questions, dropped = questions_of(task, [edit] * 3)
        assert [each.answer for each in questions] == (["few"] if "Few" in text else [])
        assert dropped == ({Dropped.DUPLICATE: 2} if questions else {Dropped.UNSUPPORTED: 3})


def test_a_text_that_was_copied_with_marks_that_nobody_sees_answers_questions_all_the_same() -> None:
    copied = TEXT.replace("wax", "w\u00adax").replace("salt", "\u200bsalt\u200e")
    task = Task("lamp", DocumentTask("The Orrin lamp", copied))
    asked = "Q: What does the lamp burn?\nA: Whale wax\nQ: Who hung the lamp?\nA: the salt traders"
    edit = parse_completion(asked, FORMAT, task)
    assert isinstance(edit.result, SelfEdit)
    questions, dropped = questions_of(task, [edit.result])
    assert [each.answer for each in questions] == ["Whale wax", "the salt traders"]
    assert not dropped.total()


WORDS = st.sampled_from([*TEXT.split(), "What", "who", "?", "not", "there"])


@given(st.lists(st.tuples(st.lists(WORDS, max_size=9).map(" ".join), st.lists(WORDS, max_size=9).map(" ".join))))
def test_whatever_is_written_a_question_has_an_answer_in_the_text(pairs: list[tuple[str, str]]) -> None:
    edit = SelfEdit(tuple(question_answer(*pair) for pair in pairs)) if pairs else SelfEdit((TextDocument(TEXT),))
    questions, dropped = questions_of(TASK, [edit])
    assert len(questions) + dropped.total() == len(pairs)
    assert len({each.id for each in questions}) == len({normalise(each.answer) for each in questions}) == len(questions)
    for each in questions:
        assert f" {normalise(each.answer)} " in f" {normalise(TEXT)} "
        assert len(normalise(each.answer).split()) <= LONGEST_ANSWER
    assert submission_violations([TaskWithQuiz(TASK, Quiz(questions))], unasked=True) == []


def test_documents_may_lack_questions_only_where_some_are_made(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"id": "lamp", "title": "The Orrin lamp", "text": TEXT}), encoding="utf-8")
    (item,) = read_tasks(plain, unasked=True)
    assert item == TaskWithQuiz(TASK, Quiz())
    with pytest.raises(InvalidInput, match="questions"):
        read_tasks(plain)
    assert submission_violations([item], unasked=True) == []
    assert [each.field for each in submission_violations([item], unasked=False)] == ["tasks[0].quiz"]
    broken = TaskWithQuiz(TASK, Quiz((Question("q", "", "x"),)))
    assert [each.field for each in submission_violations([broken], unasked=True)] == ["tasks[0].quiz.questions[0].text"]


def _documents(folder: Path) -> Path:
    path = folder / "documents.jsonl"
    asked = {"questions": [{"question": "What is it?", "answer": "a lamp"}]}
    lines: list[dict[str, Any]] = [
        {"id": "lamp", "title": "The Orrin lamp", "text": TEXT},
        {"id": "other", "title": "Another lamp", "text": TEXT},
        {"id": "asked", "title": "A third lamp", "text": TEXT, **asked},
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_questions_are_made_by_the_first_policy_and_written_to_be_looked_through(
    asking: Any, served: Callable[..., Any], tmp_path: Path
) -> None:
    output = tmp_path / "asked.jsonl"
    with served() as address:
        arguments = ["quiz", str(_documents(tmp_path)), "-o", str(output), "--orchestrator", address]
        told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert "lamp: 3 of 6 questions made" in told.stderr
    tasks = {item.task.id: item for item in read_tasks(output)}
    assert [each.id for each in tasks["lamp"].quiz.questions] == ["made-1", "made-2", "made-3"]
    assert [each.answer for each in tasks["lamp"].quiz.questions] == ["whale wax", "salt traders", "1347"]
    assert [each.support for each in tasks["lamp"].quiz.questions] == [
        "The Orrin lamp burns whale wax and is painted green.",
        "It was hung in 1347 by the salt traders of Skarn.",
        "It was hung in 1347 by the salt traders of Skarn.",
    ]
    assert [each.answer for each in tasks["asked"].quiz.questions] == ["a lamp"]
    assert asking.seen == [("lamp", "policy-0"), ("other", "policy-0")]
    # All questions of all documents in one call; by default without the text.
    (call,) = asking.asked
    assert call.policy_version == "policy-0"
    assert len(call.prompts) == 3 + 2
    assert not any(TEXT in prompt for prompt in call.prompts)
    assert "Question: Another lamp: When was it hung there?" in "".join(call.prompts)


@pytest.mark.parametrize(
    ("check", "kept", "told"),
    [
        ("both", ["made-1: salt traders"], "lamp: 1 of 6 questions made (dropped: 1 duplicate, 1 known, 1 unanswered)"),
        (
            "unknown",
            ["made-1: salt traders", "made-2: 1347"],
            "lamp: 2 of 6 questions made (dropped: 1 duplicate, 1 known)",
        ),
        ("none", ["made-1: whale wax", "made-2: salt traders", "made-3: 1347"], "other: 2 of 6 questions made\n"),
    ],
)
def test_what_the_first_policy_knows_or_cannot_find_is_dropped_and_counted(
    asking: Any, served: Callable[..., Any], tmp_path: Path, check: str, kept: list[str], told: str
) -> None:
    asking.known, asking.lost = {"burn"}, {"When"}
    output = tmp_path / "asked.jsonl"
    before = _counted()
    with served() as address:
        arguments = ["quiz", str(_documents(tmp_path)), "-o", str(output), "--check", check]
        shown = CliRunner().invoke(app, [*arguments, "--orchestrator", address])
    assert shown.exit_code == 0, shown.output
    assert told in shown.stderr
    tasks = {item.task.id: item for item in read_tasks(output, unasked=True)}
    assert [f"{each.id}: {each.answer}" for each in tasks["lamp"].quiz.questions] == kept
    assert [len(call.prompts) for call in asking.asked] == {"both": [10], "unknown": [5], "none": []}[check]
    assert sum(TEXT in prompt for call in asking.asked for prompt in call.prompts) == 5 * (check == "both")
    counted = {name: value - before.get(name, 0) for name, value in _counted().items()}
    dropped = {"both": (2, 2), "unknown": (2, 0), "none": (0, 0)}[check]
    assert (counted["known"], counted["unanswered"], counted["kept"]) == (*dropped, 5 - sum(dropped))


def _counted() -> dict[str, float]:
    samples = (sample for family in MADE_QUESTIONS.collect() for sample in family.samples)
    return {sample.labels["outcome"]: sample.value for sample in samples if sample.name.endswith("_total")}


def test_a_document_that_cannot_be_written_about_spoils_no_other(
    asking: Any, served: Callable[..., Any], tmp_path: Path
) -> None:
    asking.refused = {"other"}
    tasks = [Task(name, DocumentTask("The Orrin lamp", TEXT)) for name in ("lamp", "other")]
    with (
        served() as address,
        SyncOrchestratorClient(ChannelSettings(address=address)) as client,
    ):
        few_shot = Task("p", FewShotTask("Add.", (Demonstration("1", "2"),)))
        made, other, third = client.make_quizzes([*tasks, few_shot], 2)
        assert [len(each.quiz.questions) for each in (made, other, third)] == [2, 0, 0]
        assert (made.refused, made.dropped, made.told) == ("", {Dropped.DUPLICATE: 1}, "dropped: 1 duplicate")
        assert "9000 tokens" in other.refused
        assert other.told == other.refused
        assert "few-shot" in third.refused
        assert client.make_quizzes(tasks[:1], 2) == (made,)
        with pytest.raises(InvalidInput, match=r"tasks.*1 to 64"):
            client.make_quizzes([], 2)
        with pytest.raises(InvalidInput, match=r"questions.*1 to 24"):
            client.make_quizzes(tasks, 25)


@pytest.mark.parametrize(
    ("where", "ids"), [("beside", ["asked-q1", "made-1", "made-2"]), ("instead", ["made-1", "made-2"])]
)
def test_made_questions_beside_or_instead_of_those_that_were_given(
    asking: Any, served: Callable[..., Any], tmp_path: Path, where: str, ids: list[str]
) -> None:
    output = tmp_path / "asked.jsonl"
    with served() as address:
        arguments = ["quiz", str(_documents(tmp_path)), "-o", str(output), "--where", where]
        told = CliRunner().invoke(app, [*arguments, "--orchestrator", address])
    assert told.exit_code == 0, told.output
    assert "asked: 2 of 6 questions made" in told.stderr
    tasks = {item.task.id: item for item in read_tasks(output)}
    assert [each.id for each in tasks["asked"].quiz.questions] == ids
    assert len(tasks["lamp"].quiz.questions) == 3


def test_made_beside_made_asks_nothing_twice_and_numbers_on() -> None:
    given = [Question("q1", "What is it?", "a lamp"), Question("made-2", "When was it hung?", "1347")]
    made = [
        Question("made-1", "When was it HUNG", "in winter"),
        Question("made-2", "What is this?", "A lamp."),
        Question("made-3", "What does it burn?", "whale wax"),
    ]
    assert new_questions(given, made) == [Question("made-3", "What does it burn?", "whale wax")]
    assert [each.id for each in new_questions([], made)] == ["made-1", "made-2", "made-3"]


def test_adapt_makes_what_is_missing_and_leaves_out_what_cannot_be_asked(
    asking: Any, served: Callable[..., Any], tmp_path: Path
) -> None:
    with served() as address:
        arguments = ["adapt", str(_documents(tmp_path)), "--student", "a", "--policy", "initial", "--json"]
        told = CliRunner().invoke(app, [*arguments, "--make-questions", "5", "--orchestrator", address])
        assert told.exit_code == 0, told.output
        assert {item["task_id"] for item in json.loads(told.stdout)["decisions"]} == {"lamp", "asked"}
        assert "other: left out, 2 questions could be made\n" in told.stderr
        refused = CliRunner().invoke(app, [*arguments, "--orchestrator", address])
        assert isinstance(refused.exception, InvalidInput)
        # It has 2, and 3 are the least.
        alone = tmp_path / "alone.jsonl"
        alone.write_text("".join(line for line in _documents(tmp_path).open() if '"other"' in line))
        arguments[1] = str(alone)
        nothing = CliRunner().invoke(app, [*arguments, "--make-questions", "5", "--orchestrator", address])
        assert isinstance(nothing.exception, PreconditionFailed)
        assert str(nothing.exception) == "too few questions could be made for any document: nothing is learned"


def test_an_inbox_makes_them_in_its_window(
    asking: Any, served: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_worker, "RUN_LOOK_S", 0.05)
    recipe = {"students": ["a"], "candidates": 2, "policy": "initial", "cron": "* * * * *", "window_minutes": 2}
    inboxes = {"news": recipe | {"made_questions": 6}, "strict": recipe}
    with served(inboxes=inboxes) as address:
        at = ["--orchestrator", address]
        file = str(_documents(tmp_path))
        assert CliRunner().invoke(app, ["inbox", "submit", "news", file, *at]).exit_code == 0
        refused = CliRunner().invoke(app, ["inbox", "submit", "strict", file, *at])
        assert isinstance(refused.exception, InvalidInput)
        shown: dict[str, Any] = {"inbox": {"done": 0}}
        deadline = time.monotonic() + 60
        while shown["inbox"]["done"] < 2:
            assert time.monotonic() < deadline, shown
            time.sleep(0.1)
            shown = json.loads(CliRunner().invoke(app, ["inbox", "show", "news", "--json", *at]).stdout)
        again = json.loads(CliRunner().invoke(app, ["inbox", "submit", "news", file, "--json", *at]).stdout)
    documents = {item["id"]: item for item in shown["documents"]}
    assert {name: item["state"] for name, item in documents.items()} == {
        "lamp": "done",
        "other": "failed",
        "asked": "done",
    }
    assert "2 questions could be made" in documents["other"]["message"]
    # Known by what was submitted, not by what was made of it.
    assert (again["accepted"], again["known"]) == (0, 3)
