"""A commit is whole or nothing: what cannot be quizzed is no version, and the next try makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import student.engine as engine_module
from student.quiz_room import take_quizzes
from tutelage.domain.errors import Exhausted
from tutelage.domain.evaluation import EvaluationReport

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory


@pytest.mark.parametrize(
    ("fault", "told"),
    [(torch.OutOfMemoryError("CUDA out of memory"), Exhausted), (RuntimeError("a bug"), RuntimeError)],
    ids=["memory", "bug"],
)
@pytest.mark.parametrize("quiz", [1, 2])
def test_a_commit_whose_quiz_fails_leaves_no_version_and_can_be_asked_again(
    student: EngineFactory,
    make_key: KeyFactory,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    told: type[Exception],
    quiz: int,
) -> None:
    engine = student()
    key = make_key(engine)
    job = engine.evaluate(key, lease_s=120)
    assert job.done.wait(60)
    assert isinstance(job.outcome, EvaluationReport)
    taken: list[object] = []

    def failing(*args: Any, **named: Any) -> Any:
        taken.append(args)
        if len(taken) == quiz:
            raise fault
        return take_quizzes(*args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(engine_module, "take_quizzes", failing)
        with pytest.raises(told):
            engine.commit(key.id)
    assert engine.list_adapters() == ()
    assert list((engine.settings.data_dir / "adapters").iterdir()) == []
    adapter, after, retention = engine.commit(key.id)
    assert engine.list_adapters() == (adapter,)
    assert engine.commit(key.id) == (adapter, after, retention)
    # What is stored is what was quizzed.
    answers = engine.answer(key.quiz.questions, adapter_version=adapter.version)
    assert [answer.text for answer in answers] == [answer.text for answer in after.answers]
    assert [answer.scores["loglik"] for answer in answers] == [answer.scores["loglik"] for answer in after.answers]
