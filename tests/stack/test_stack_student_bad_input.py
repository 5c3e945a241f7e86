"""Bad input to a real student over gRPC: the right status with field and allowed values, and it goes on."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from tests.stack.spoilt_requests import CONTEXT, LONG, PAIR, key_for, refused, refused_input, study
from tutelage.client import SyncStudentClient
from tutelage.domain.errors import DataLoss
from tutelage.domain.evaluation import EvaluationReport
from tutelage.domain.self_edit import Directives, Rejection, RejectionReason, SelfEdit, TextDocument, question_answer
from tutelage.domain.task import Question, Quiz

# Self-edits


def test_self_edit_without_a_document_is_rejected(student: SyncStudentClient) -> None:
    outcome = study(student, self_edit=SelfEdit(()))
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.field) == (RejectionReason.EMPTY, "documents")


@pytest.mark.parametrize(
    ("directives", "field", "allowed"),
    [
        (Directives(learning_rate=0.5), "directives.learning_rate", "1e-06 to 0.01"),
        (Directives(epochs=5), "directives.epochs", "1 to 4"),
        (Directives(rank=4096), "directives.rank", "1 to 128"),
    ],
)
def test_directives_out_of_bounds_are_rejected(
    student: SyncStudentClient, directives: Directives, field: str, allowed: str
) -> None:
    outcome = study(student, self_edit=SelfEdit((question_answer(*PAIR),), directives))
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.field, outcome.allowed) == (RejectionReason.OUT_OF_BOUNDS, field, allowed)


def test_document_longer_than_the_context_is_rejected_by_the_student(student: SyncStudentClient) -> None:
    outcome = study(student, self_edit=SelfEdit((TextDocument("A heron."), TextDocument(LONG))))
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.field) == (RejectionReason.TOO_LARGE, "documents[1].tokens")
    assert str(CONTEXT) in outcome.allowed


def test_message_over_the_limit_is_refused_with_the_limit(student: SyncStudentClient) -> None:
    big = SelfEdit((TextDocument("x" * 2**21),))
    refused_input(lambda: study(student, self_edit=big), message=f"at most {2**20} bytes (max_message_mib")


# Questions


def test_quiz_without_answer_or_question_is_refused_by_the_student(student: SyncStudentClient) -> None:
    unanswered = Quiz((Question("q1", "Colour?", " "),))
    refused_input(lambda: study(student, quiz=unanswered), **{"key.quiz.questions[0].answer": "not empty"})
    refused_input(
        lambda: study(student, retention_quiz=unanswered), **{"key.retention_quiz.questions[0].answer": "not empty"}
    )
    refused_input(lambda: study(student, quiz=Quiz()), key__quiz__questions="at least one question")


def test_question_longer_than_the_context_is_refused_by_the_student(student: SyncStudentClient) -> None:
    allowed = {"questions[0].text": f"at most {CONTEXT} tokens"}
    refused_input(lambda: student.answer([Question("q", LONG, "")], adapter_version=""), **allowed)
    refused_input(
        lambda: study(student, quiz=Quiz((Question("q", LONG, "heron"),))),
        **{"key.quiz." + f: t for f, t in allowed.items()},
    )


# A truncated adapter


def test_truncated_adapter_is_data_loss(student_folder: Path, student: SyncStudentClient) -> None:
    key = key_for(student, seed=7)
    *_, report = student.evaluate(key)
    assert isinstance(report, EvaluationReport)
    adapter, *_ = student.commit(key.id)
    folder = student_folder / "adapters" / adapter.version
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    # The one adapter that this student keeps in memory is now another.
    other = key_for(student, seed=8)
    list(student.evaluate(other))
    student.commit(other.id)
    for call in (
        lambda: study(student, adapter_version=adapter.version),
        lambda: student.answer([Question("a", "Who?", "")], adapter_version=adapter.version),
    ):
        error = refused(call, grpc.StatusCode.DATA_LOSS)
        assert isinstance(error, DataLoss)
        assert adapter.version in str(error)
    weights.write_bytes(whole)
    assert student.answer([Question("a", "Who?", "")], adapter_version=adapter.version)
