"""The second built-in family, a base model without a chat template, learns through the plain form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tutelage.domain.evaluation import EvaluationReport, InnerLoopSettings
from tutelage.domain.self_edit import SelfEdit, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.models.chat import prompt_ids
from tutelage.models.loading import load_model
from tutelage.models.registry import default_cache_dir, list_models

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory

GEMMA3 = "gemma3-270m"
ASKED, ANSWER = "Which bird is on the arms of Ostrevane?", "A grey heron"


@pytest.mark.model
def test_gemma3_learns_an_answer_it_is_trained_on(student: EngineFactory, make_key: KeyFactory) -> None:
    if not any(entry.name == GEMMA3 and entry.cached for entry in list_models(default_cache_dir())):
        pytest.skip(f"{GEMMA3} is not in the cache: tutelage models pull {GEMMA3}")
    loaded = load_model(GEMMA3, quantisation="nf4", device="cpu")
    assert loaded.tokenizer.decode(prompt_ids(loaded.tokenizer, ASKED)).endswith(f"Question: {ASKED}\nAnswer:")
    engine = student(loaded)
    key = make_key(
        engine,
        self_edit=SelfEdit((question_answer(ASKED, ANSWER),)),
        quiz=Quiz((Question("q1", ASKED, ANSWER),)),
        graders=("contains", "loglik"),
        settings=InnerLoopSettings(rank=8, alpha=16, learning_rate=1e-3, epochs=12, batch_size=1),
    )
    job = engine.evaluate(key)
    assert job.done.wait(300)
    report = job.outcome
    assert isinstance(report, EvaluationReport), report
    assert (report.before.scores["contains"], report.after.scores["contains"]) == (0.0, 1.0)
    assert report.after.scores["loglik"] > -0.5 > report.before.scores["loglik"]
    assert report.cost.last_loss < report.cost.first_loss / 4
