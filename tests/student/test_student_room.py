"""Many evaluations side by side: each has its own end, and a deterministic student works as if alone."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import student.bank_step as bank_step
import student.room as room_module
from student.engine import StudentEngine
from student.quiz_room import answered
from tests.student.outcomes import outcome_of, report_of, timeless, together
from tutelage.domain.errors import Exhausted
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport, Failure
from tutelage.domain.self_edit import Directives, Rejection, SelfEdit, question_answer
from tutelage.models.loading import LoadedModel, load_model

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory


@pytest.fixture
def model(tiny_path: Path) -> Callable[[], LoadedModel]:
    def load() -> LoadedModel:
        return load_model(str(tiny_path), quantisation="nf4", device="cpu", compute_dtype="float32", threads=1)

    return load


def keys_of(make_key: KeyFactory, engine: StudentEngine, count: int) -> Iterator[EvaluationKey]:
    """Evaluations of different edits, lengths, ranks, rates and epochs."""
    for i in range(count):
        edit = SelfEdit(
            tuple(question_answer(f"Which bird of {j}?", "heron " * (1 + (i + j) % 4)) for j in range(1 + i % 3)),
            Directives(learning_rate=(1e-3, 5e-3)[i % 2], epochs=2 + i % 4, rank=(2, 4, 8)[i % 3]),
        )
        yield make_key(engine, self_edit=edit, seed=i)


def test_sixteen_clients_get_the_reports_of_evaluations_alone(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel], tmp_path: Path
) -> None:
    bank = student(model(), slots=5, data_dir=tmp_path / "bank")
    single = student(model(), slots=1, data_dir=tmp_path / "single")
    with ThreadPoolExecutor(16) as clients:
        reports = list(clients.map(lambda key: report_of(bank, key), keys_of(make_key, bank, 16)))
    for report, key in zip(reports, keys_of(make_key, single, 16), strict=True):
        alone = report_of(single, key)
        assert report.cost.steps == alone.cost.steps
        assert report.cost.last_loss == pytest.approx(alone.cost.last_loss, rel=1e-4)
        assert report.after.scores["loglik"] == pytest.approx(alone.after.scores["loglik"], rel=1e-3)
        assert [answer.text for answer in report.before.answers] == [answer.text for answer in alone.before.answers]
    assert bank.describe().free_slots == 5


def test_seconds_of_evaluations_side_by_side_add_up_to_no_more_than_passed(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel]
) -> None:
    engine = student(model(), slots=8)
    keys = keys_of(make_key, engine, 8)
    started = time.monotonic()
    with ThreadPoolExecutor(8) as clients:
        costs = [report.cost for report in clients.map(lambda key: report_of(engine, key), keys)]
    passed = time.monotonic() - started
    assert all(cost.train_seconds > 0 and cost.quiz_seconds > 0 for cost in costs)
    assert sum(cost.train_seconds + cost.quiz_seconds for cost in costs) <= passed


def test_a_deterministic_student_gives_a_crowd_the_bits_of_a_quiet_one(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel], tmp_path: Path
) -> None:
    crowded, quiet = (student(model(), slots=None, deterministic=True, data_dir=tmp_path / name) for name in "ab")
    assert crowded.describe().slots == 1
    with ThreadPoolExecutor(16) as clients:
        reports = list(clients.map(lambda key: report_of(crowded, key), keys_of(make_key, crowded, 8)))
    for report, key in reversed(list(zip(reports, keys_of(make_key, quiet, 8), strict=True))):
        alone = timeless(report_of(quiet, key))
        assert dataclasses.replace(timeless(report), evaluation_id=alone.evaluation_id) == alone


def test_who_leaves_early_leaves_the_others_as_they_were(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel]
) -> None:
    engine = student(model(), slots=4)
    keys = list(keys_of(make_key, engine, 4))
    long = dataclasses.replace(
        keys[0], settings=dataclasses.replace(keys[0].settings, learning_rate=1e-3), self_edit=keys[1].self_edit, seed=9
    )
    long = dataclasses.replace(
        long, self_edit=dataclasses.replace(long.self_edit, directives=Directives(epochs=30, learning_rate=1e-3))
    )
    stepping = threading.Event()
    job = engine.evaluate(long, watcher=lambda event: stepping.set() if getattr(event, "steps_done", 0) else None)
    others = [engine.evaluate(key, lease_s=120) for key in keys]
    assert stepping.wait(60)
    assert engine.cancel_evaluation(job.id)
    for other in others:
        assert other.done.wait(60)
        assert isinstance(other.outcome, EvaluationReport)
    assert isinstance(job.outcome, Failure)


def test_in_a_bank_half_empty_who_is_trained_is_quizzed_while_others_train(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel]
) -> None:
    engine = student(model(), slots=16)
    short, long = (
        make_key(engine, self_edit=SelfEdit((question_answer("Which?", "heron"),), Directives(epochs=epochs)))
        for epochs in (1, 30)
    )
    steps: list[int] = []
    seen_at_the_end: list[int] = []

    def at_its_end(event: object) -> None:
        if isinstance(event, EvaluationReport):
            seen_at_the_end.append(steps[-1])

    entered = threading.Event()
    engine._scheduler.call(lambda: entered.wait(60))
    slow = engine.evaluate(long, lease_s=120, watcher=lambda event: steps.append(getattr(event, "steps_done", 30)))
    engine.evaluate(short, lease_s=120, watcher=at_its_end)
    entered.set()
    assert slow.done.wait(120)
    assert isinstance(slow.outcome, EvaluationReport)
    assert len(seen_at_the_end) == 1
    assert seen_at_the_end[0] < 20


def test_an_edit_at_fault_ends_alone(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel]
) -> None:
    engine = student(model(), slots=3)
    key = make_key(engine)
    fault = dataclasses.replace(key, self_edit=dataclasses.replace(key.self_edit, directives=Directives(epochs=5000)))
    bad, good = engine.evaluate(fault, lease_s=60), engine.evaluate(key, lease_s=60)
    assert bad.done.wait(60)
    assert good.done.wait(60)
    assert isinstance(bad.outcome, Rejection)
    assert isinstance(good.outcome, EvaluationReport)


def test_tokens_are_counted_as_they_are_trained_on_whatever_becomes_of_the_evaluation(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel]
) -> None:
    def counted() -> float:
        return float(engine._metrics.training_tokens._value.get())

    engine = student(model(), slots=2, bounds={"max_learning_rate": 1e38})
    key = make_key(engine)
    whole = report_of(engine, key).cost
    assert counted() == whole.tokens
    exploding = dataclasses.replace(key.settings, learning_rate=1e37, max_grad_norm=0.0, epochs=30)
    assert isinstance(outcome_of(engine, dataclasses.replace(key, settings=exploding)), Rejection)
    after = counted()
    assert after > whole.tokens
    # While it is under way: a rate of whole evaluations would come in lumps.
    seen: list[float] = []
    job = engine.evaluate(dataclasses.replace(key, seed=8), lease_s=60, watcher=lambda event: seen.append(counted()))
    assert job.done.wait(60)
    assert len({count for count in seen if count > after}) > 2


def test_out_of_memory_ends_one_evaluation_and_lowers_the_slots(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(model(), slots=3)
    real = bank_step.backward

    def crowded_out(bank: Any, parts: Any, limits: Any) -> Any:
        if len(parts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(bank, parts, limits)

    monkeypatch.setattr(bank_step, "backward", crowded_out)
    # Nothing is taken in before all three wait, so that they share their first step.
    outcomes = together(engine, keys_of(make_key, engine, 3))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert len(failed) == 1
    assert failed[0].retryable
    assert failed[0].exhausted
    assert "out of memory" in failed[0].message
    assert sum(isinstance(outcome, EvaluationReport) for outcome in outcomes) == 2
    assert engine.describe().slots == 2


def test_who_waits_for_the_answers_of_the_untouched_student_takes_a_slot(
    student: EngineFactory, make_key: KeyFactory, model: Callable[[], LoadedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(model(), slots=1, max_queue=0)
    asked, go_on = threading.Event(), threading.Event()

    def slow(bank: Any, sittings: Any, **named: Any) -> Any:
        asked.set()
        assert go_on.wait(60)
        return answered(bank, sittings, **named)

    monkeypatch.setattr(room_module, "answered", slow)
    job = engine.evaluate(make_key(engine), lease_s=120)
    assert asked.wait(60)
    try:
        assert engine.describe().free_slots == 0
        with pytest.raises(Exhausted):
            engine.evaluate(make_key(engine, seed=8), lease_s=120)
    finally:
        go_on.set()
    assert job.done.wait(60)
    assert isinstance(job.outcome, EvaluationReport)
    assert engine.describe().free_slots == 1
