"""How much of a quiz a self-edit gives away word for word."""

from __future__ import annotations

from tutelage.domain.self_edit import SelfEdit, TextDocument, TrainingDocument
from tutelage.domain.task import DocumentTask, Quiz, Task
from tutelage.grading.strings import contains


def answer_overlap(self_edit: SelfEdit, quiz: Quiz, task: Task | None = None) -> float:
    """Share, 0 to 1, of the questions whose answer (or an alias) stands in a document of the edit; 0 without any.

    What the `task` itself gives to study, its passage or its demonstrations, is left out: answers that stand in a
    passage would stand in each of its edits, whatever was written.
    """
    if not quiz.questions:
        return 0.0
    written = [_texts(document) for document in self_edit.documents]
    if task is not None:
        written = [texts for texts in written if not _is_given(texts, task)]
    texts = [text for each in written for text in each]
    found = sum(any(contains(text, (q.answer, *q.aliases)) for text in texts) for q in quiz.questions)
    return found / len(quiz.questions)


def _texts(document: TrainingDocument) -> tuple[str, ...]:
    if isinstance(document, TextDocument):
        return (document.text,)
    return tuple(message.content for message in document.messages)


def _is_given(texts: tuple[str, ...], task: Task) -> bool:
    if isinstance(task.content, DocumentTask):
        passage = _letters(task.content.text)
        return bool(passage) and any(passage in _letters(text) for text in texts)
    given = {(_letters(item.input), _letters(item.output)) for item in task.content.demonstrations}
    return tuple(map(_letters, texts)) in given


def _letters(text: str) -> str:
    """All that is left of a text whatever a teacher takes out of it or puts into it to make it readable.

    Of one without a letter or a digit its signs.
    """
    return "".join(filter(str.isalnum, text.casefold())) or "".join(text.split())
