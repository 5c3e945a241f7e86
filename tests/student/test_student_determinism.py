"""A deterministic student in bfloat16 gives one key the same bits, whatever arrives beside it.

A large model's products round by the shape of their batch; a tiny one's hardly do. So here every projection of the base
is made to: what shares a step or a batch with others comes out otherwise, on any machine.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from student.bank import BankLinear
from student.engine import StudentEngine
from tests.student.outcomes import PATIENCE_S, outcome_of, timeless, together
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport, Failure, InnerLoopSettings
from tutelage.domain.self_edit import Directives, Rejection, SelfEdit, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.models.loading import load_model

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory

FIRST = Quiz((Question("q1", "Which bird is on the arms?", "heron"), Question("q2", "Who?", "Hamo Drysse")))
SECOND = Quiz((Question("q1", "What do they make there?", "seals"),))
RETENTION = Quiz((Question("r1", "What is the capital of France?", "Paris"),))


def round_by_shape(engine: StudentEngine) -> None:
    """Every output of a projection is off by some units in the last place, by how many tokens are in the batch."""
    for module in engine._loaded.model.modules():
        if isinstance(module, BankLinear):
            module.base.register_forward_hook(
                lambda layer, inputs, output: output * (1 + (inputs[0].shape[:-1].numel() % 7 - 3) / 128)
            )


@pytest.fixture
def rounding(student: EngineFactory, tiny_path: Path, tmp_path: Path) -> Callable[..., StudentEngine]:
    """Makes students that round by shape; each keeps what it knows under the name given."""

    def make(name: str, threads: int = 1, **settings: object) -> StudentEngine:
        model = load_model(str(tiny_path), quantisation="nf4", device="cpu", compute_dtype="bfloat16", threads=threads)
        engine = student(model, data_dir=tmp_path / name, **settings)
        round_by_shape(engine)
        return engine

    return make


def keys_of(make_key: KeyFactory, engine: StudentEngine, seed: int = 0) -> list[EvaluationKey]:
    """Five evaluations that differ in length, rank, rate, epochs and quiz."""
    keys = []
    for i in range(5):
        documents = [question_answer(f"Which bird of {j}?", "heron " * (1 + (i + j) % 4)) for j in range(1 + i % 3)]
        directives = Directives(learning_rate=(1e-3, 5e-3)[i % 2], epochs=2 + i % 3, rank=(2, 4, 8)[i % 3])
        edit = SelfEdit(tuple(documents), directives)
        keys.append(
            make_key(
                engine,
                self_edit=edit,
                quiz=(FIRST, SECOND)[i % 2],
                retention_quiz=RETENTION,
                graders=("contains", "loglik"),
                settings=InnerLoopSettings(rank=4, alpha=8, batch_size=1 + i % 2),
                seed=seed + i,
            )
        )
    return keys


def all_timeless(outcomes: Iterable[object]) -> list[EvaluationReport]:
    return [timeless(each) for each in outcomes]


def cached(outcomes: Iterable[object]) -> list[bool]:
    return [outcome.cost.baseline_cached for outcome in outcomes if isinstance(outcome, EvaluationReport)]


@pytest.fixture
def quiet(rounding: Callable[..., StudentEngine], make_key: KeyFactory) -> list[EvaluationReport]:
    """The reports of a deterministic student that is asked one evaluation after another."""
    engine = rounding("quiet", slots=None, deterministic=True)
    return all_timeless([outcome_of(engine, key) for key in keys_of(make_key, engine)])


def test_slots_that_are_shared_round_otherwise(rounding: Callable[..., StudentEngine], make_key: KeyFactory) -> None:
    """What the tests below rest on: here a neighbour does show in the bits."""
    alone, shared = rounding("alone", slots=1), rounding("shared", slots=5)
    (key, *others) = keys_of(make_key, alone)
    assert [key, *others] == keys_of(make_key, shared)
    (report,), (beside, *_) = all_timeless([outcome_of(alone, key)]), all_timeless(together(shared, [key, *others]))
    assert report.cost.first_loss != beside.cost.first_loss
    assert report.after != beside.after


def test_neighbours_and_their_order_do_not_show(
    rounding: Callable[..., StudentEngine], make_key: KeyFactory, quiet: list[EvaluationReport]
) -> None:
    engine = rounding("crowd", slots=None, deterministic=True)
    keys = keys_of(make_key, engine)
    assert all_timeless(reversed(together(engine, keys[::-1]))) == quiet


def test_baselines_that_are_known_do_not_show(
    rounding: Callable[..., StudentEngine], make_key: KeyFactory, quiet: list[EvaluationReport]
) -> None:
    engine = rounding("known", slots=None, deterministic=True)
    keys = keys_of(make_key, engine)
    # One of the two quizzes is known, then also the other; what the quiet student had known differs.
    assert cached([outcome_of(engine, keys[3]), outcome_of(engine, keys[0])]) == [False, False]
    rest = [keys[4], keys[2], keys[1]]
    outcomes = together(engine, rest)
    assert cached(outcomes) == [True, True, True]
    stored = [outcome_of(engine, key) for key in keys]
    assert all_timeless(stored) == quiet
    assert [quiet[4], quiet[2], quiet[1]] == all_timeless(outcomes)


def test_strangers_faults_and_other_calls_do_not_show(
    rounding: Callable[..., StudentEngine], make_key: KeyFactory, quiet: list[EvaluationReport]
) -> None:
    engine = rounding("busy", slots=None, deterministic=True)
    keys, strangers = keys_of(make_key, engine), keys_of(make_key, engine, seed=50)
    fault = dataclasses.replace(keys[0], self_edit=dataclasses.replace(keys[0].self_edit, documents=()))
    long = dataclasses.replace(strangers[1].self_edit, directives=Directives(epochs=30))
    begun = threading.Event()
    left = engine.evaluate(
        dataclasses.replace(strangers[1], self_edit=long),
        lease_s=PATIENCE_S,
        watcher=lambda event: begun.set() if getattr(event, "steps_done", 0) else None,
    )
    assert begun.wait(PATIENCE_S)
    engine.answer(SECOND.questions)
    assert engine.cancel_evaluation(left.id)
    mixed = [strangers[0], keys[2], fault, keys[4], strangers[3], keys[0], keys[3], strangers[2], keys[1]]
    outcomes = together(engine, mixed)
    assert isinstance(left.outcome, Failure)
    assert isinstance(outcomes[2], Rejection)
    assert all_timeless([outcomes[mixed.index(key)] for key in keys]) == quiet


def test_a_restart_does_not_show(
    rounding: Callable[..., StudentEngine], make_key: KeyFactory, quiet: list[EvaluationReport]
) -> None:
    first = rounding("restarted", slots=None, deterministic=True)
    outcome_of(first, keys_of(make_key, first, seed=50)[0])
    first.close()
    second = rounding("restarted", slots=None, deterministic=True)
    keys = keys_of(make_key, second)
    outcomes = together(second, keys)
    # The quiz of the first evaluation and the retention quiz are known from before, the other's is not.
    assert cached(outcomes)[:2] == [True, False]
    assert all_timeless(outcomes) == quiet


def test_several_threads_do_not_show(rounding: Callable[..., StudentEngine], make_key: KeyFactory) -> None:
    """Where slots and quizzes could be spread over the cores, a deterministic student's are not."""
    threads = torch.get_num_threads()
    try:
        alone, crowd = (rounding(name, threads=2, slots=None, deterministic=True) for name in ("alone", "crowd"))
        keys = keys_of(make_key, alone)
        assert keys == keys_of(make_key, crowd)
        expected = all_timeless([outcome_of(alone, key) for key in keys])
        assert all_timeless(reversed(together(crowd, keys[::-1]))) == expected
    finally:
        torch.set_num_threads(threads)
