"""Versions kept only for later give way: to evaluations that wait for memory, and to the version that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import student.bank_step as bank_step
from student.bank_adapter import BankAdapter
from student.capacity import slot_bytes
from student.engine import StudentEngine
from tests.student.outcomes import PATIENCE_S, held
from tutelage.domain.errors import Exhausted
from tutelage.domain.evaluation import EvaluationReport, Failure

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory

FULL = torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def committed(student: EngineFactory, make_key: KeyFactory) -> tuple[StudentEngine, list[str]]:
    """A student of four slots, and the versions that it has."""
    engine = student(slots=4)
    versions = []
    for seed in (1, 2, 3):
        key = make_key(engine, seed=seed)
        assert engine.evaluate(key, lease_s=60).done.wait(60)
        versions.append(engine.commit(key.id)[0].version)
    return engine, versions


def test_an_idle_version_takes_no_slot_from_who_waits(
    committed: tuple[StudentEngine, list[str]], make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, versions = committed
    keys = [make_key(engine, seed=10 + i) for i in range(4)]
    capacity = engine._room._capacity
    needed = slot_bytes(engine._bank, keys[0].settings)
    engine._versions.get(versions[0])
    idle = engine._versions.held_bytes()
    assert idle > 0

    def fits(self: Any, load: Any, beside: Any = ()) -> Any:
        # Room for all four, but for a byte of an idle version.
        return (1 + len(beside)) * needed + self.parents() <= 4 * needed + idle - 1

    monkeypatch.setattr(type(capacity), "fits", fits)
    passes = []
    real = bank_step.backward

    def counted(bank: Any, parts: Any, limits: Any) -> Any:
        passes.append(len(parts))
        return real(bank, parts, limits)

    monkeypatch.setattr(bank_step, "backward", counted)
    jobs = [engine.evaluate(key, lease_s=60) for key in keys]
    for job in jobs:
        assert job.done.wait(60)
        assert isinstance(job.outcome, EvaluationReport)
    assert max(passes) == 4
    assert engine._versions.held_bytes() == 0


def test_a_version_that_is_asked_for_takes_the_place_of_idle_ones(
    committed: tuple[StudentEngine, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, versions = committed
    for version in versions[:2]:
        engine._versions.get(version)
    real, full = BankAdapter.frozen, []

    def frozen(weights: Any, device: Any) -> Any:
        if engine._versions._kept:
            full.append(weights)
            raise FULL
        return real(weights, device)

    monkeypatch.setattr(BankAdapter, "frozen", frozen)
    assert engine._versions.get(versions[2]) is not None
    assert len(full) == 1


def test_a_version_that_somebody_holds_is_no_second_one_when_it_is_asked_for_again(
    committed: tuple[StudentEngine, list[str]],
) -> None:
    engine, versions = committed
    held = engine._versions.get(versions[0])
    one = engine._versions.held_bytes()
    for _ in range(3):
        engine._versions.let_go()
        assert engine._versions.get(versions[0]) is held
    assert engine._versions.held_bytes() == one


def test_who_waits_for_a_version_that_is_deleted_is_told_so(
    committed: tuple[StudentEngine, list[str]], make_key: KeyFactory
) -> None:
    engine, versions = committed
    with held(engine._scheduler):
        asked = [make_key(engine, seed=20, adapter_version=each) for each in (versions[0], "")]
        jobs = [engine.evaluate(key, lease_s=PATIENCE_S) for key in asked]
        engine.delete_adapter(versions[0])
    for job in jobs:
        assert job.done.wait(PATIENCE_S)
    # Another replica may have it.
    missing = f"key.adapter_version: adapter '{versions[0]}' is not known"
    assert jobs[0].outcome == Failure(missing, retryable=True)
    assert isinstance(jobs[1].outcome, EvaluationReport)


def test_without_idle_versions_there_is_no_room_to_be_made(
    committed: tuple[StudentEngine, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, versions = committed

    def frozen(weights: Any, device: Any) -> Any:
        raise FULL

    engine._versions.let_go()
    monkeypatch.setattr(BankAdapter, "frozen", frozen)
    with pytest.raises(Exhausted, match="out of memory"):
        engine._versions.get(versions[0])
