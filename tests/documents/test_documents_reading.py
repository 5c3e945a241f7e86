"""Files become tasks, and what is malformed is refused with file, line and field."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.documents import read_quiz, read_tasks
from tutelage.domain.errors import InvalidInput
from tutelage.domain.task import DocumentTask, FewShotTask, Question

GOOD = {
    "id": "d1",
    "title": "Kettle",
    "text": "It holds 1.4 litres.",
    "questions": [{"question": "How much?", "answer": "1.4"}],
}
FEW_SHOT = {
    "id": "p1",
    "instruction": "Add one.",
    "demonstrations": [{"input": "1 2", "output": "2 3"}],
    "questions": [{"question": "4 5", "answer": "5 6"}],
}


def _write(folder: Path, *lines: object, name: str = "docs.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def _violation(path: Path) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        read_tasks(path)
    (violation,) = caught.value.violations
    return violation.field, violation.allowed


def test_documents_and_few_shot_lines_are_read(tmp_path: Path) -> None:
    question = {"question": "And?", "answer": "yes", "aliases": ["aye"], "id": "own", "support": "It holds it."}
    document = GOOD | {"questions": [*GOOD["questions"], question]}
    first, second = read_tasks(_write(tmp_path, document, "", FEW_SHOT))
    assert first.task.content == DocumentTask("Kettle", "It holds 1.4 litres.")
    assert first.quiz.questions == (
        Question("d1-q1", "How much?", "1.4", "Kettle"),
        Question("own", "And?", "yes", "Kettle", ("aye",)),
    )
    assert [each.support for each in first.quiz.questions] == ["", "It holds it."]
    assert isinstance(second.task.content, FewShotTask)
    assert second.task.content.demonstrations[0].output == "2 3"
    assert second.quiz.questions[0].topic == ""


def test_line_separators_inside_a_text_do_not_split_it(tmp_path: Path) -> None:
    line = json.dumps(GOOD | {"text": "one\u2028two"}, ensure_ascii=False)
    (task,) = read_tasks(_write(tmp_path, line))
    assert isinstance(task.task.content, DocumentTask)
    assert task.task.content.text == "one\u2028two"


def test_the_limit_takes_the_first_and_reads_no_further(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD, GOOD | {"id": "d2"}, "broken")
    assert [item.task.id for item in read_tasks(path, limit=2)] == ["d1", "d2"]
    with pytest.raises(InvalidInput, match="limit"):
        read_tasks(path, limit=0)


@pytest.mark.parametrize(
    ("line", "field", "allowed"),
    [
        ("{not json", "", "valid JSON, an object on each line"),
        ('{"id": NaN}', "", "valid JSON, an object on each line"),
        (json.dumps(GOOD, indent=1), "", "valid JSON, an object on each line"),
        ("7", "", "a JSON object"),
        (GOOD | {"text": " "}, "text", "a text that is not blank"),
        ({key: value for key, value in GOOD.items() if key != "title"}, "title", "a text that is not blank"),
        (GOOD | {"id": 7}, "id", "a text, in quotes"),
        (GOOD | {"questions": []}, "questions", "a list with at least one entry"),
        (GOOD | {"questions": [{"question": "?"}]}, "questions[0].answer", "a text that is not blank"),
        (GOOD | {"questions": [{"question": "?", "answer": "a", "aliases": "b"}]}, "questions[0].aliases", "a list"),
        (
            GOOD | {"questions": [{"question": "?", "answer": "a", "support": 1}]},
            "questions[0].support",
            "a text, in quotes",
        ),
        (GOOD | {"quiz": []}, "quiz", "one of the fields id, title, text, questions"),
        (GOOD | {"text": "\ud800"}, "text", "valid Unicode (no lone surrogates)"),
        (GOOD | {"id": "d0"}, "id", "an id that is not taken"),
        (GOOD | {"id": "a/b"}, "id", "1 to 200 characters without '/'"),
        (GOOD | {"id": "x" * 201}, "id", "1 to 200 characters without '/'"),
        (FEW_SHOT | {"id": "a/b"}, "id", "1 to 200 characters without '/'"),
        ('{"id": "d1", "title": "a", "title": "b"}', "title", "a key that is given once"),
        ('{"questions": [{"question": "?", "answer": "a", "answer": "b"}]}', "answer", "a key that is given once"),
        (FEW_SHOT | {"demonstrations": [{"input": "1"}]}, "demonstrations[0].output", "a text that is not blank"),
    ],
)
def test_a_malformed_line_is_refused_by_file_line_and_field(
    tmp_path: Path, line: object, field: str, allowed: str
) -> None:
    path = _write(tmp_path, GOOD | {"id": "d0"}, "", line)
    found, wanted = _violation(path)
    assert found == (f"{path}:3: {field}" if field else f"{path}:3")
    assert wanted.startswith(allowed)


def test_a_key_given_twice_is_refused_in_quizzes_and_squad_files_too(tmp_path: Path) -> None:
    quiz = _write(tmp_path, '{"question": "?", "answer": "a"}', '{"question": "?", "answer": "a", "answer": "b"}')
    with pytest.raises(InvalidInput) as caught:
        read_quiz(quiz)
    assert caught.value.violations[0].field == f"{quiz}:2: answer"
    flat = _write(tmp_path, '[{"title": "t", "context": "a", "context": "b", "questions": []}]', name="flat.json")
    assert _violation(flat) == (f"{flat}: context", "a key that is given once")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe\x00"])
def test_files_without_text_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_bytes(content)
    assert _violation(path)[0] == str(path)
    assert _violation(tmp_path / "absent.jsonl")[1] == "a readable file"
    assert _violation(tmp_path)[1] == "a readable file"


def test_official_squad_is_read_with_aliases_and_without_impossible_questions(tmp_path: Path) -> None:
    answers = [{"text": "Paris", "answer_start": 0}, {"text": "Paris", "answer_start": 0}, {"text": "the city"}]
    qas = [
        {"id": "q-a", "question": "Where?", "answers": answers, "is_impossible": False},
        {"id": "q-b", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    only_impossible = {"context": "c", "qas": qas[1:]}
    article = {"title": "Super_Bowl_50", "paragraphs": [only_impossible, {"context": "Text.", "qas": qas}]}
    path = _write(tmp_path, json.dumps({"version": "2.0", "data": [article]}, indent=2), name="squad.json")
    (task,) = read_tasks(path)
    assert task.task.id == "squad-00002"
    assert task.quiz.questions == (Question("q-a", "Where?", "Paris", "Super Bowl 50", ("the city",)),)


def test_flat_squad_is_read_and_its_faults_named(tmp_path: Path) -> None:
    entry = {"title": "T", "context": "Text.", "questions": [{"question": "Q?", "answer": "A"}]}
    (task,) = read_tasks(_write(tmp_path, [entry], name="flat.json"))
    assert task.quiz.questions == (Question("squad-00001-q1", "Q?", "A", "T"),)
    path = _write(tmp_path, [entry, entry | {"questions": [{"question": "Q?", "answers": []}]}], name="bad.json")
    assert _violation(path)[0] == f"{path}: [1].questions[0].answers"


def test_a_quiz_is_read_and_repeated_ids_refused(tmp_path: Path) -> None:
    path = _write(
        tmp_path, {"question": "Q?", "answer": "A"}, {"question": "R?", "answer": "B", "id": "x"}, name="k.jsonl"
    )
    assert [question.id for question in read_quiz(path).questions] == ["k-q1", "x"]
    twice = _write(tmp_path, *[{"question": "Q?", "answer": "A", "id": "x"}] * 2, name="twice.jsonl")
    with pytest.raises(InvalidInput, match=r"twice\.jsonl:2: id"):
        read_quiz(twice)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = (
    "id",
    "title",
    "text",
    "questions",
    "question",
    "answer",
    "data",
    "paragraphs",
    "qas",
    "context",
    "demonstrations",
)
SHAPED = st.recursive(
    JSON,
    lambda inner: st.dictionaries(st.sampled_from(KEYS), inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=8,
)
CONTENT = (
    st.binary(max_size=60)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.lists(SHAPED, max_size=3).map(lambda values: "\n".join(json.dumps(value) for value in values).encode())
    | st.sampled_from((b"[" * 200_000, b'{"data":' * 100_000, b"9" * 5000, b'{"data": 1}', b"[[]]"))
)


@settings(max_examples=150, deadline=None)
@given(CONTENT)
def test_any_content_is_read_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.jsonl"
        path.write_bytes(content)
        for read in (read_tasks, read_quiz):
            refusal = _refusal(read, path)
            assert refusal is None or str(path) in refusal.violations[0].field


def _refusal(read: Callable[[Path], object], path: Path) -> InvalidInput | None:
    try:
        read(path)
    except InvalidInput as error:
        return error
    return None
