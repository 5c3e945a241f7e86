"""How much of a quiz a self-edit gives away word for word."""

from __future__ import annotations

from tutelage.domain.self_edit import SelfEdit, TextDocument
from tutelage.domain.task import Quiz
from tutelage.grading.strings import contains


def answer_overlap(self_edit: SelfEdit, quiz: Quiz) -> float:
    """Share, 0 to 1, of the questions whose answer (or an alias) stands in a document of the edit; 0 without any."""
    if not quiz.questions:
        return 0.0
    texts = [
        text
        for document in self_edit.documents
        for text in (
            (document.text,)
            if isinstance(document, TextDocument)
            else tuple(message.content for message in document.messages)
        )
    ]
    found = sum(any(contains(text, (q.answer, *q.aliases)) for text in texts) for q in quiz.questions)
    return found / len(quiz.questions)
