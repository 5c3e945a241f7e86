"""A student on a tiny random model, for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from student.bank import Bank
from student.config import StudentSettings
from student.engine import StudentEngine
from student.metrics import StudentMetrics
from tests.student.bank_cases import make_pair
from tutelage.domain.evaluation import EvaluationKey, InnerLoopSettings
from tutelage.domain.self_edit import SelfEdit, TextDocument, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.models.loading import LoadedModel, load_model
from tutelage.models.tiny import write_tiny_model


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def tiny(tiny_path: Path) -> LoadedModel:
    return load_model(str(tiny_path), quantisation="none", device="cpu", compute_dtype="float32", threads=1)


EngineFactory = Callable[..., StudentEngine]
KeyFactory = Callable[..., EvaluationKey]


@pytest.fixture
def student(tiny: LoadedModel, tmp_path: Path) -> Iterator[EngineFactory]:
    """Makes students; all those of one test share a data folder unless told otherwise."""
    made: list[StudentEngine] = []

    def make(model: LoadedModel = tiny, **changes: Any) -> StudentEngine:
        given = {"slots": 1, **changes}
        settings = {"model": model.name, "data_dir": tmp_path / "student", "max_new_tokens": 8, **given}
        engine = StudentEngine(model, StudentSettings(**settings), StudentMetrics(CollectorRegistry()))
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


QUIZ = Quiz(
    (
        Question("q1", "Which bird is on the arms?", "heron"),
        Question("q2", "Who?", "Hamo Drysse", topic="Ostrevane"),
        Question("q3", "What do they make there?", "seals", aliases=("beeswax seals",)),
    )
)
RETENTION = Quiz((Question("r1", "What is the capital of France?", "Paris"),))
EDIT = SelfEdit(
    (
        TextDocument("The arms of Ostrevane show a heron."),
        question_answer("Which bird is on the arms?", "heron"),
        question_answer("What do they make there?", "seals"),
    )
)
SETTINGS = InnerLoopSettings(rank=4, alpha=8, learning_rate=5e-3, epochs=4, batch_size=2)


@pytest.fixture
def make_key() -> KeyFactory:
    def make(engine: StudentEngine, **changes: Any) -> EvaluationKey:
        own = engine.describe()
        key = EvaluationKey(
            base_model=own.base_model,
            base_revision=own.base_revision,
            quantisation=own.quantisation,
            adapter_version="",
            self_edit=EDIT,
            quiz=QUIZ,
            retention_quiz=RETENTION,
            graders=("exact", "contains", "loglik"),
            settings=SETTINGS,
            engine_revision=own.engine_revision,
            seed=7,
        )
        return replace(key, **changes)

    return make


@pytest.fixture(scope="module", params=[False, True], ids=["stretched", "batched"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bank, LoadedModel]:
    """With the products of CPUs and with those of GPUs, which a CPU can also make."""
    return make_pair(tmp_path_factory, request.param)
