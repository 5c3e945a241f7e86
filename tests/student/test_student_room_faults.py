"""What goes wrong in the room ends whom it concerns, and nobody is left behind: the student goes on with the next."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pytest
import torch

import student.bank_step as bank_step
import student.room as room_module
from student.bank_adapter import BankAdapter
from student.evaluation import Evaluation
from student.quiz_room import answered
from student.scheduler import JobOutcome
from student.slot import Slot
from tests.student.outcomes import together
from tutelage.domain.evaluation import EvaluationReport, Failure
from tutelage.domain.self_edit import Directives, SelfEdit, TextDocument
from tutelage.domain.task import Question, Quiz

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory

FULL = torch.OutOfMemoryError("CUDA out of memory")
LONG = Quiz((Question("long", "Which bird is " + "on the arms " * 20 + "?", "heron"),))
EDIT = SelfEdit((TextDocument("The arms of Ostrevane show a heron."),))


def once(
    real: Callable[..., Any], fault: Exception, when: Callable[..., bool] = lambda *args: True
) -> Callable[..., Any]:
    """The function, but for the first call that is so: it raises."""
    faults = [fault]

    def call(*args: Any, **named: Any) -> Any:
        if faults and when(*args):
            raise faults.pop()
        return real(*args, **named)

    return call


def reports(outcomes: Iterable[JobOutcome | None]) -> list[bool]:
    for outcome in outcomes:
        assert isinstance(outcome, EvaluationReport) or (isinstance(outcome, Failure) and outcome.retryable), outcome
    return [isinstance(outcome, EvaluationReport) for outcome in outcomes]


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (BankAdapter, "weights", FULL),
        (Evaluation, "ended", sqlite3.OperationalError("disk I/O error")),
        (Evaluation, "missing_baselines", sqlite3.OperationalError("disk I/O error")),
    ],
    ids=["weights", "report", "baselines"],
)
def test_a_fault_at_the_start_or_end_of_one_is_its_own(
    student: EngineFactory,
    make_key: KeyFactory,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    fault: Exception,
) -> None:
    engine = student(slots=3)
    monkeypatch.setattr(where, name, once(getattr(where, name), fault))
    keys = [make_key(engine, seed=i) for i in range(3)]
    good = reports(together(engine, keys))
    assert sorted(good) == [False, True, True]
    assert engine.describe().slots == (2 if fault is FULL else 3)
    assert reports(together(engine, [keys[good.index(False)]])) == [True]
    assert engine.describe().free_slots == engine.describe().slots


def test_after_an_error_out_of_the_room_nobody_holds_a_slot(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(slots=2)
    monkeypatch.setattr(room_module, "step", once(bank_step.step, RuntimeError("can't start new thread")))
    keys = [make_key(engine, seed=i) for i in range(3)]
    assert sorted(reports(together(engine, keys))) == [False, False, True]
    assert engine.describe().free_slots == 2
    assert all(reports(together(engine, keys)))
    assert engine.healthy()


@pytest.mark.parametrize("after", [False, True], ids=["baseline", "quiz"])
def test_a_quiz_too_large_for_the_memory_ends_alone(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    def crowded(bank: Any, sittings: Any, **named: Any) -> Any:
        if any(sitting.questions == LONG.questions and bool(sitting.adapters) == after for sitting in sittings):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return answered(bank, sittings, **named)

    engine = student(slots=3)
    monkeypatch.setattr(room_module, "answered", crowded)
    keys = [make_key(engine, seed=i, **({"quiz": LONG} if i == 1 else {})) for i in range(3)]
    outcomes = together(engine, keys)
    assert reports(outcomes) == [True, False, True]
    assert isinstance(outcomes[1], Failure)
    assert "out of memory" in outcomes[1].message
    assert engine.describe().slots == 2
    # One that is alone is too large itself, whatever the number of slots.
    assert reports(together(engine, [keys[1]])) == [False]
    assert engine.describe().slots == engine.describe().free_slots == 2


def test_a_slot_that_cannot_be_made_ends_one_and_who_comes_after_waits_until_somebody_leaves(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(slots=4)

    def crowded(bank: Any, rows: Any, settings: Any, seed: Any, **named: Any) -> Any:
        if settings.rank == 8 and engine._room._training:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Slot(bank, rows, settings, seed, **named)

    monkeypatch.setattr(room_module, "Slot", crowded)
    edits = [SelfEdit(EDIT.documents, Directives(rank=rank)) for rank in (4, 8, 8, 2)]
    keys = [make_key(engine, self_edit=edit, seed=i) for i, edit in enumerate(edits)]
    assert reports(together(engine, keys)) == [True, False, True, True]
    assert engine.describe().slots == 3


def test_two_that_do_not_fit_beside_each_other_cost_one_slot_of_many(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(slots=16)
    monkeypatch.setattr(
        bank_step, "backward", once(bank_step.backward, FULL, lambda bank, parts, limits: len(parts) > 1)
    )
    assert sorted(reports(together(engine, [make_key(engine, seed=i) for i in range(2)]))) == [False, True]
    assert engine.describe().slots == 15


def test_where_there_is_no_memory_at_all_everybody_is_told(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(slots=3)
    keys = [make_key(engine, seed=i) for i in range(5)]
    tried = []

    def full(bank: Any, sittings: Any, **named: Any) -> Any:
        tried.append(len(sittings))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(room_module, "answered", full)
        assert not any(reports(together(engine, keys)))
    assert len(tried) == len(keys)
    assert engine.describe().slots == engine.describe().free_slots == 1
    assert all(reports(together(engine, keys)))


def test_a_baseline_that_is_no_number_fails_those_who_asked_for_it(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(bank: Any, sittings: Any, **named: Any) -> Any:
        given = answered(bank, sittings, **named)
        of_long = [sitting.questions == LONG.questions for sitting in sittings]
        return [(texts, [math.nan] if bad else values) for bad, (texts, values) in zip(of_long, given, strict=True)]

    engine = student(slots=3)
    monkeypatch.setattr(room_module, "answered", broken)
    keys = [make_key(engine, seed=i, **({"quiz": LONG} if i == 1 else {})) for i in range(3)]
    assert reports(together(engine, keys)) == [True, False, True]


def test_who_is_cancelled_in_a_shared_quiz_leaves_no_report_and_the_other_does(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(slots=2)
    # From now on the baseline is known, and the next that is answered is the quiz of both.
    assert reports(together(engine, [make_key(engine, seed=9)])) == [True]
    keys = [make_key(engine, seed=i) for i in range(2)]
    why = Failure("cancelled on request", retryable=False)
    sat: list[int] = []

    def cancelling(bank: Any, sittings: Any, **named: Any) -> Any:
        sat.append(len(sittings))
        engine.cancel_evaluation(keys[0].id)
        return answered(bank, sittings, **named)

    monkeypatch.setattr(room_module, "answered", cancelling)
    gone, stayed = together(engine, keys)
    assert gone == why
    assert isinstance(stayed, EvaluationReport)
    assert len(sat) == 1
    assert engine._store.outcome(keys[0].id) is None


def test_versions_that_nobody_trains_over_are_given_back_when_memory_runs_out(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = student(slots=2)
    key = make_key(engine, seed=1)
    assert reports(together(engine, [key])) == [True]
    version = engine.commit(key.id)[0].version
    over, plain = make_key(engine, seed=2, adapter_version=version), make_key(engine, seed=3)
    assert engine._versions.held_bytes() == 0
    engine.check(over)
    assert engine._versions.held_bytes() > 0
    with monkeypatch.context() as patch:
        patch.setattr(bank_step, "backward", once(bank_step.backward, FULL))
        assert reports(together(engine, [plain])) == [False]
    assert engine._versions.held_bytes() == 0
    assert reports(together(engine, [plain, over])) == [True, True]
