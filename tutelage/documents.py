"""Documents with quizzes from files (own JSONL, SQuAD JSON); what is malformed is refused by file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tutelage.domain.errors import InvalidInput
from tutelage.domain.run import TaskWithQuiz
from tutelage.domain.task import MAX_TASK_ID, Demonstration, DocumentTask, FewShotTask, Question, Quiz, Task

_DOCUMENT_KEYS = ("id", "title", "text", "questions")
_FEW_SHOT_KEYS = ("id", "instruction", "demonstrations", "questions")
_QUESTION_KEYS = ("id", "question", "answer", "aliases", "topic", "support")


def read_tasks(path: str | Path, limit: int | None = None, *, unasked: bool = False) -> list[TaskWithQuiz]:
    """The first `limit` tasks of a file: JSONL (documents or few-shot tasks, one a line) or SQuAD JSON (nested, flat).

    With `unasked`, documents of a JSONL file may come without questions; their quiz is then empty.

    Raises InvalidInput that names the file, the line (JSONL) or the position (SQuAD), and the field.
    """
    if limit is not None and limit < 1:
        raise InvalidInput.of("limit", limit, "1 or more")
    content = _read(path)
    tasks: list[TaskWithQuiz] = []
    first_seen: dict[str, str] = {}
    for node, task in _tasks(content, path, unasked):
        if task.task.id in first_seen:
            raise node.at("id").refuse(task.task.id, f"an id that is not taken (first at {first_seen[task.task.id]})")
        first_seen[task.task.id] = node.place
        tasks.append(task)
        if len(tasks) == limit:
            break
    if not tasks:
        raise InvalidInput.of(str(path), "no tasks", "at least one task")
    return tasks


def read_quiz(path: str | Path) -> Quiz:
    """A quiz from JSONL lines with `question` and `answer` (optional: `aliases`, `id`, `topic`, `support`).

    Raises InvalidInput as `read_tasks` does.
    """
    nodes = list(_lines(_read(path), path))
    if not nodes:
        raise InvalidInput.of(str(path), "no questions", "at least one question")
    return Quiz(_questions(nodes, prefix=Path(path).stem, topic=""))


@dataclass(frozen=True)
class _Node:
    """A JSON value and where it stands, so that a refusal can say so."""

    value: object
    place: str
    field: str = ""

    def at(self, key: str) -> _Node:
        value = self.value.get(key) if isinstance(self.value, Mapping) else None
        return _Node(value, self.place, f"{self.field}.{key}" if self.field else key)

    def refuse(self, value: object, allowed: str) -> InvalidInput:
        shown = "(missing)" if value is None else value
        return InvalidInput.of(f"{self.place}: {self.field}" if self.field else self.place, shown, allowed)

    def mapping(self, allowed_keys: Sequence[str] | None = None) -> Mapping[str, object]:
        if not isinstance(self.value, Mapping):
            raise self.refuse(self.value, "a JSON object")
        if allowed_keys is not None:
            for key in self.value:
                if key not in allowed_keys:
                    raise self.at(str(key)).refuse(key, "one of the fields " + ", ".join(allowed_keys))
        return self.value

    def text(self, default: str | None = None) -> str:
        if self.value is None and default is not None:
            return default
        if self.value is not None and not isinstance(self.value, str):
            raise self.refuse(json.dumps(self.value), "a text, in quotes")
        if self.value is None or not self.value.strip():
            raise self.refuse(self.value, "a text that is not blank")
        if not _encodable(self.value):
            raise self.refuse(ascii(self.value), "valid Unicode (no lone surrogates)")
        return self.value

    def items(self, *, empty: bool = False) -> list[_Node]:
        if not isinstance(self.value, list) or not (self.value or empty):
            raise self.refuse(self.value, "a list" if empty else "a list with at least one entry")
        return [_Node(item, self.place, f"{self.field}[{index}]") for index, item in enumerate(self.value)]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput.of(str(path), f"byte {error.start}", "a file in UTF-8") from error
    except (OSError, ValueError) as error:
        raise InvalidInput.of(str(path), str(error), "a readable file") from error


def _parse(text: str, path: str | Path, line: int, *, whole: bool = False) -> object:
    """The JSON value of one line, or of a file that is one value as a `whole`."""
    spot = str(path) if whole else f"{path}:{line}"
    # A file that is right for other readers of JSON, an object over several lines, is told what is asked of it here.
    allowed = "valid JSON" if whole else "valid JSON, an object on each line"

    def each_key_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise InvalidInput.of(f"{spot}: {twice}", "given twice", "a key that is given once")
        return made

    def refuse_constant(name: str) -> object:
        raise ValueError(f"{name} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse_constant, object_pairs_hook=each_key_once)
    except json.JSONDecodeError as error:
        place = f"{path}:{line + error.lineno - 1}"
        raise InvalidInput.of(place, f"{error.msg} at column {error.colno}", allowed) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInput.of(spot, str(error), allowed) from error


def _lines(content: str, path: str | Path) -> Iterator[_Node]:
    # Not splitlines: U+2028 and its kin may stand inside a JSON string.
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _Node(_parse(line, path, number), f"{path}:{number}")


def _tasks(content: str, path: str | Path, unasked: bool) -> Iterator[tuple[_Node, TaskWithQuiz]]:
    start = content.lstrip()
    if start.startswith("["):
        yield from _flat_squad(_Node(_parse(content, path, 1, whole=True), str(path)))
        return
    # SQuAD's own files are one object with `data`; a first line that is an object of ours has no such key.
    if start.startswith("{") and '"data"' in start and _is_nested_squad(start):
        yield from _nested_squad(_Node(_parse(content, path, 1, whole=True), str(path)))
        return
    for node in _lines(content, path):
        yield node, _own_task(node, unasked)


def _is_nested_squad(content: str) -> bool:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "data" in value


def _own_task(node: _Node, unasked: bool) -> TaskWithQuiz:
    few_shot = "demonstrations" in node.mapping() or "instruction" in node.mapping()
    node.mapping(_FEW_SHOT_KEYS if few_shot else _DOCUMENT_KEYS)
    task_id = node.at("id").text()
    if len(task_id) > MAX_TASK_ID or "/" in task_id:
        raise node.at("id").refuse(task_id, f"1 to {MAX_TASK_ID} characters without '/'")
    content: DocumentTask | FewShotTask
    if few_shot:
        content = FewShotTask(
            node.at("instruction").text(),
            tuple(_demonstration(item) for item in node.at("demonstrations").items()),
        )
        topic = ""
    else:
        content = DocumentTask(node.at("title").text(), node.at("text").text())
        topic = content.title
    if unasked and not few_shot and not node.at("questions").value:
        return TaskWithQuiz(Task(task_id, content), Quiz())
    questions = _questions(node.at("questions").items(), prefix=task_id, topic=topic)
    return TaskWithQuiz(Task(task_id, content), Quiz(questions))


def _demonstration(node: _Node) -> Demonstration:
    node.mapping(("input", "output"))
    return Demonstration(node.at("input").text(), node.at("output").text())


def _questions(nodes: Sequence[_Node], *, prefix: str, topic: str) -> tuple[Question, ...]:
    questions: list[Question] = []
    taken: set[str] = set()
    for index, node in enumerate(nodes, start=1):
        node.mapping(_QUESTION_KEYS)
        aliases = node.at("aliases")
        question = Question(
            id=node.at("id").text(default=f"{prefix}-q{index}"),
            text=node.at("question").text(),
            answer=node.at("answer").text(),
            topic=node.at("topic").text(default=topic),
            aliases=() if aliases.value is None else tuple(item.text() for item in aliases.items(empty=True)),
            support=node.at("support").text(default=""),
        )
        if question.id in taken:
            raise node.at("id").refuse(question.id, "an id that no other question of the quiz has")
        taken.add(question.id)
        questions.append(question)
    return tuple(questions)


def _flat_squad(root: _Node) -> Iterator[tuple[_Node, TaskWithQuiz]]:
    for number, node in enumerate(root.items(), start=1):
        node.mapping()
        questions = node.at("questions").items()
        yield node, _squad_task(node.at("title"), node.at("context"), questions, number)


def _nested_squad(root: _Node) -> Iterator[tuple[_Node, TaskWithQuiz]]:
    number = 0
    for article in root.at("data").items():
        for paragraph in article.at("paragraphs").items(empty=True):
            # SQuAD 2.0 holds questions without an answer: they measure something else.
            questions = [qa for qa in paragraph.at("qas").items(empty=True) if qa.at("is_impossible").value is not True]
            number += 1
            if questions:
                yield paragraph, _squad_task(article.at("title"), paragraph.at("context"), questions, number)


def _squad_task(title_node: _Node, text_node: _Node, nodes: Sequence[_Node], number: int) -> TaskWithQuiz:
    title = title_node.text().replace("_", " ")
    task_id = f"squad-{number:05d}"
    questions = tuple(
        _squad_question(node, topic=title, default_id=f"{task_id}-q{index}")
        for index, node in enumerate(nodes, start=1)
    )
    if len({question.id for question in questions}) != len(questions):
        raise text_node.refuse("repeated question id", "questions with ids that differ")
    return TaskWithQuiz(Task(task_id, DocumentTask(title, text_node.text())), Quiz(questions))


def _squad_question(node: _Node, *, topic: str, default_id: str) -> Question:
    if "answers" in node.mapping():
        golds = [_squad_answer(item) for item in node.at("answers").items()]
    else:
        golds = [node.at("answer").text()]
    distinct = list(dict.fromkeys(golds))
    return Question(
        id=node.at("id").text(default=default_id),
        text=node.at("question").text(),
        answer=distinct[0],
        topic=topic,
        aliases=tuple(distinct[1:]),
    )


def _squad_answer(node: _Node) -> str:
    return node.text() if isinstance(node.value, str) else node.at("text").text()
