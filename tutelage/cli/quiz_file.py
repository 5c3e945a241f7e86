"""The file that `tutelage quiz` writes: a group of documents at a time, so that the same command goes on after them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.domain.task import DocumentTask

if TYPE_CHECKING:
    from tutelage.domain.run import TaskWithQuiz

_BEGIN = b'{"id": '
"""What every line begins with."""


def document_line(item: TaskWithQuiz) -> str:
    """A document as a line of the files that are read."""
    content = item.task.content
    if not isinstance(content, DocumentTask):
        raise TypeError("only documents are written")
    questions: list[dict[str, Any]] = [
        {"id": each.id, "question": each.text, "answer": each.answer}
        | ({"topic": each.topic} if each.topic != content.title else {})
        | ({"aliases": list(each.aliases)} if each.aliases else {})
        | ({"support": each.support} if each.support else {})
        for each in item.quiz.questions
    ]
    line = {"id": item.task.id, "title": content.title, "text": content.text, "questions": questions}
    return json.dumps(line, ensure_ascii=False)


def document_lines(items: Sequence[TaskWithQuiz]) -> str:
    """Documents as text, a line each."""
    return "".join(f"{document_line(item)}\n" for item in items)


class QuizFile:
    """Documents are added to it; what was there stays, unless it is begun `anew`: then until the first are added."""

    def __init__(self, path: Path, documents: Path, *, anew: bool) -> None:
        """InvalidInput where it is the file that the documents come from; OSError where it cannot be written."""
        from tutelage.domain.errors import InvalidInput

        if path.exists() and path.samefile(documents):
            raise InvalidInput.of("output", path, f"another file than {documents}")
        # A path that cannot be written is better told before questions are made than after.
        path.open("ab").close()
        self._path, self._documents, self._anew = path, documents, anew

    def ids(self, tasks: Sequence[TaskWithQuiz]) -> frozenset[str]:
        """Of these tasks those that are there already. A line on which a command was cut off is taken away.

        InvalidInput where something else than these tasks is there.
        """
        from tutelage.documents import read_tasks
        from tutelage.domain.errors import InvalidInput

        if self._anew:
            return frozenset()
        self._mend()
        if not self._path.stat().st_size:
            return frozenset()
        known = {item.task.id: item.task for item in tasks}
        try:
            there = [item.task for item in read_tasks(self._path, unasked=True)]
            for task in there:
                if task.id not in known:
                    raise InvalidInput.of(f"{self._path}: id", task.id, f"the id of a document of {self._documents}")
                if task != known[task.id]:
                    raise InvalidInput.of(
                        f"{self._path}: {task.id}", "another title or text", f"those that it has in {self._documents}"
                    )
        except InvalidInput as error:
            told = [replace(each, allowed=f"{each.allowed}; --overwrite begins anew") for each in error.violations]
            raise InvalidInput(told) from None
        return frozenset(task.id for task in there)

    def add(self, items: Sequence[TaskWithQuiz]) -> None:
        """Writes them at the end."""
        with self._path.open("wb" if self._anew else "ab") as stream:
            stream.write(document_lines(items).encode())
        self._anew = False

    def _mend(self) -> None:
        """A last line without its end is cut off if it is no JSON, and ended if it is: part of an object never is."""
        content = self._path.read_bytes()
        end = content.rfind(b"\n") + 1
        last = content[end:]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            # What no command of ours began is left for the reader to refuse.
            if last.startswith(_BEGIN) or _BEGIN.startswith(last):
                os.truncate(self._path, end)
            return
        with self._path.open("ab") as stream:
            stream.write(b"\n")
