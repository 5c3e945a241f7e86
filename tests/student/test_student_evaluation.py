"""What an edit is rejected for before anything of it is tokenised or computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import student.evaluation as evaluation_module
import student.quiz as quiz_module
from tutelage.domain.errors import InvalidInput
from tutelage.domain.evaluation import Bounds
from tutelage.domain.self_edit import (
    ChatDocument,
    ChatMessage,
    Directives,
    Rejection,
    RejectionReason,
    Role,
    SelfEdit,
    TextDocument,
    question_answer,
)
from tutelage.domain.task import Question, Quiz
from tutelage.models.chat import document_ids

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory


MOST = 512 * len("<|endoftext|>")
"""Characters that the tokens of the tiny model's context can stand for."""
SHORT = TextDocument("A heron.")
TURNS = ChatDocument((ChatMessage(Role.USER, "Who?"), *[ChatMessage(Role.ASSISTANT, "", train=True)] * 512))


def tokenised(*args: Any) -> Any:
    raise AssertionError("it was tokenised")


@pytest.mark.parametrize("directives", [Directives(), Directives(epochs=30)])
def test_too_many_documents_are_told_before_any_is_tokenised(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch, directives: Directives
) -> None:
    """It is the worker who tokenises, and meanwhile all evaluations of the student would wait."""
    monkeypatch.setattr(evaluation_module, "document_ids", tokenised)
    engine, most = student(), Bounds().max_documents
    job = engine.evaluate(make_key(engine, self_edit=SelfEdit((TextDocument("x"),) * (most + 1), directives)))
    assert job.done.wait(60)
    assert isinstance(job.outcome, Rejection)
    assert job.outcome.reason is RejectionReason.TOO_LARGE
    told = (job.outcome.field, job.outcome.value, job.outcome.allowed)
    assert told == ("documents", str(most + 1), f"at most {most}")


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (TextDocument("x" * (MOST + 1)), ("documents[1].characters", str(MOST + 1), f"at most {MOST}")),
        (question_answer("Who?", "y" * MOST), ("documents[1].characters", str(MOST + 4), f"at most {MOST}")),
        (TURNS, ("documents[1].messages", "513", "at most 512")),
    ],
    ids=["text", "chat", "empty turns"],
)
def test_a_document_that_cannot_fit_is_told_before_any_is_tokenised(
    student: EngineFactory,
    make_key: KeyFactory,
    monkeypatch: pytest.MonkeyPatch,
    document: TextDocument | ChatDocument,
    told: tuple[str, str, str],
) -> None:
    """Tokenising tens of MB takes minutes, and so does cutting thousands of turns; all else would wait for it."""
    monkeypatch.setattr(evaluation_module, "document_ids", tokenised)
    engine = student()
    job = engine.evaluate(make_key(engine, self_edit=SelfEdit((SHORT, document, SHORT))))
    assert job.done.wait(60)
    assert isinstance(job.outcome, Rejection)
    assert job.outcome.reason is RejectionReason.TOO_LARGE
    assert (job.outcome.field, job.outcome.value, job.outcome.allowed) == told


def test_what_stands_behind_a_document_that_is_too_long_is_not_tokenised(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def counted(tokenizer: Any, document: Any, mask: Any) -> Any:
        seen.append(document)
        return document_ids(tokenizer, document, mask)

    monkeypatch.setattr(evaluation_module, "document_ids", counted)
    engine, long = student(), TextDocument("x" * MOST)
    job = engine.evaluate(make_key(engine, self_edit=SelfEdit((SHORT, long, TextDocument("y" * MOST)))))
    assert job.done.wait(60)
    assert isinstance(job.outcome, Rejection)
    assert (job.outcome.field, job.outcome.value) == ("documents[1].tokens", str(MOST + 1))
    assert seen == [SHORT, long]


def test_a_question_that_cannot_fit_is_told_before_it_is_tokenised(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks of all callers wait for each other."""
    engine = student()
    key = make_key(engine, retention_quiz=Quiz(), quiz=Quiz((Question("q", "x" * MOST, "y" * (MOST + 1), topic="z"),)))
    monkeypatch.setattr(quiz_module, "prompt_ids", tokenised)
    monkeypatch.setattr(quiz_module, "document_ids", tokenised)
    with pytest.raises(InvalidInput) as caught:
        engine.check(key)
    assert [(item.field, item.value, item.allowed) for item in caught.value.violations[:2]] == [
        ("key.quiz.questions[0].text", f"{MOST + 3} characters", f"at most {MOST} characters"),
        ("key.quiz.questions[0].answer", f"{MOST + 1} characters", f"at most {MOST} characters"),
    ]
