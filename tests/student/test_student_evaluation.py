"""What an edit is rejected for before anything of it is tokenised or computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import student.evaluation as evaluation_module
from tutelage.domain.evaluation import Bounds
from tutelage.domain.self_edit import Directives, Rejection, RejectionReason, SelfEdit, TextDocument

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory


@pytest.mark.parametrize("directives", [Directives(), Directives(epochs=30)])
def test_too_many_documents_are_told_before_any_is_tokenised(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch, directives: Directives
) -> None:
    """It is the worker who tokenises, and meanwhile all evaluations of the student would wait."""

    def tokenised(*args: Any) -> Any:
        raise AssertionError("a document was tokenised")

    monkeypatch.setattr(evaluation_module, "document_ids", tokenised)
    engine, most = student(), Bounds().max_documents
    job = engine.evaluate(make_key(engine, self_edit=SelfEdit((TextDocument("x"),) * (most + 1), directives)))
    assert job.done.wait(60)
    assert isinstance(job.outcome, Rejection)
    assert job.outcome.reason is RejectionReason.TOO_LARGE
    told = (job.outcome.field, job.outcome.value, job.outcome.allowed)
    assert told == ("documents", str(most + 1), f"at most {most}")
