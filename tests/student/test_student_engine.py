"""The engine end to end on a tiny model: final reports, commits, answers, and what it refuses."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import student.room as room_module
from student.bank_step import StepFailed
from student.engine import StudentEngine
from tests.student.outcomes import outcome_of, report_of, timeless
from tutelage.domain.description import EvaluationState
from tutelage.domain.errors import DataLoss, Exhausted, InvalidInput, NotFound, PreconditionFailed
from tutelage.domain.evaluation import EvaluationKey, Failure
from tutelage.domain.self_edit import Directives, Rejection, RejectionReason, SelfEdit, TextDocument, question_answer
from tutelage.domain.task import Question, Quiz
from tutelage.models.loading import Quantisation, load_model

if TYPE_CHECKING:
    from tests.student.conftest import EngineFactory, KeyFactory


def value(engine: StudentEngine, name: str, **labels: str) -> float:
    families = [family for metric in vars(engine._metrics).values() for family in metric.collect()]
    samples = [sample for family in families for sample in family.samples]
    (found,) = [sample.value for sample in samples if sample.name == name and sample.labels == labels]
    return float(found)


def slow_key(make_key: KeyFactory, engine: StudentEngine, **changes: Any) -> EvaluationKey:
    key = make_key(engine, **changes)
    settings = dataclasses.replace(key.settings, epochs=30, batch_size=1)
    edit = SelfEdit(tuple(TextDocument(f"{i} " + "a heron on a key " * 20) for i in range(60)))
    return dataclasses.replace(key, settings=settings, self_edit=edit)


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_an_evaluation_learns_and_reports(
    student: EngineFactory, make_key: KeyFactory, tiny_path: Path, quantisation: Quantisation
) -> None:
    model = load_model(str(tiny_path), quantisation=quantisation, device="cpu", compute_dtype="float32", threads=1)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    engine = student(model)
    report = report_of(engine, make_key(engine))
    assert report.cost.last_loss < report.cost.first_loss
    assert report.cost.steps == 8
    assert 0 < report.cost.supervised_tokens < report.cost.tokens
    assert report.after.scores["loglik"] > report.before.scores["loglik"]
    assert [answer.question_id for answer in report.after.answers] == ["q1", "q2", "q3"]
    assert set(report.retention_after.scores) == {"exact", "contains", "loglik"}
    assert report.answer_overlap == pytest.approx(2 / 3)
    after = {name.replace(".base.", "."): tensor for name, tensor in model.model.state_dict().items()}
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_same_key_gives_the_same_report_bit_for_bit(
    student: EngineFactory, make_key: KeyFactory, tmp_path: Path, tiny_path: Path
) -> None:
    first, second = (
        student(
            load_model(str(tiny_path), quantisation="none", device="cpu", compute_dtype="float32", threads=1),
            data_dir=tmp_path / name,
            deterministic=True,
        )
        for name in ("a", "b")
    )
    key = make_key(first)
    # Another evaluation in between must leave no trace.
    report_of(second, make_key(second, seed=99))
    assert timeless(report_of(first, key)) == timeless(report_of(second, key))
    other = report_of(first, make_key(first, seed=8))
    assert other.after.scores["loglik"] != report_of(first, key).after.scores["loglik"]
    assert other.before == report_of(first, key).before


def test_the_revision_names_what_decides_the_bits_of_a_deterministic_student(student: EngineFactory) -> None:
    """Batches of another size and other threads round otherwise, which a student of many slots does anyway."""

    def revisions(**settings: Any) -> set[str]:
        threads, found = torch.get_num_threads(), set()
        for count, batch in ((1, 32), (1, 8), (2, 32)):
            torch.set_num_threads(count)
            found.add(student(quiz_batch_size=batch, **settings).engine_revision)
        torch.set_num_threads(threads)
        return found

    assert len(revisions(deterministic=True)) == 3
    assert len(revisions()) == 1


def test_asking_twice_trains_once_also_after_a_restart(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student()
    key = make_key(engine)
    events: list[object] = []
    job = engine.evaluate(key, watcher=events.append)
    again = engine.evaluate(key, watcher=events.append)
    assert again is job or again.outcome is not None
    assert job.done.wait(60)
    report = report_of(engine, key)
    assert value(engine, "tutelage_student_evaluations_total", outcome="report") == 1
    assert report in events
    engine.close()
    restarted = student()
    assert report_of(restarted, key) == report
    assert value(restarted, "tutelage_student_training_tokens_total") == 0
    assert restarted.get_evaluation(key.id).state is EvaluationState.DONE
    adapter, quiz, retention = restarted.commit(key.id)
    assert quiz.scores["loglik"] == pytest.approx(report.after.scores["loglik"], abs=1e-5)
    assert retention.scores["loglik"] == pytest.approx(report.retention_after.scores["loglik"], abs=1e-5)
    assert restarted.commit(key.id) == (adapter, quiz, retention)
    # The baseline survived as well.
    assert report_of(restarted, make_key(restarted, seed=8)).cost.baseline_cached


def test_commit_over_a_parent_and_answers_of_versions(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student(max_adapter_rank=6)
    first = make_key(engine)
    report = report_of(engine, first)
    parent, *_ = engine.commit(first.id)
    assert parent.rank == 4
    second = make_key(engine, adapter_version=parent.version)
    over = report_of(engine, second)
    assert over.before.scores["loglik"] == pytest.approx(report.after.scores["loglik"], abs=1e-5)
    assert over.after.scores["loglik"] > over.before.scores["loglik"]
    child, quiz, retention = engine.commit(second.id)
    # 4 + 4 recompressed to 6: no longer the very weights of the report, also where it tells of what was forgotten.
    assert {answer.question_id for answer in retention.answers} == {each.id for each in second.retention_quiz.questions}
    assert (child.rank, child.parent_version) == (6, parent.version)
    assert quiz.scores["loglik"] > over.before.scores["loglik"]
    assert [adapter.version for adapter in engine.list_adapters()] == [parent.version, child.version]
    questions = [Question("a", "Which bird is on the arms?", "heron"), Question("b", "Who?", "")]
    base = engine.answer(questions)
    taught = engine.answer(questions, adapter_version=child.version)
    assert taught[0].scores["loglik"] > base[0].scores["loglik"]
    assert taught[1].scores == {}
    engine.delete_adapter(parent.version)
    with pytest.raises(NotFound):
        engine.answer(questions, adapter_version=parent.version)
    assert engine.answer(questions, adapter_version=child.version) == taught
    with pytest.raises(NotFound):
        engine.delete_adapter(parent.version)


def test_a_truncated_adapter_is_data_loss_and_the_student_goes_on(
    student: EngineFactory, make_key: KeyFactory, tmp_path: Path
) -> None:
    engine = student()
    key = make_key(engine)
    report_of(engine, key)
    adapter, *_ = engine.commit(key.id)
    engine.close()
    file = tmp_path / "student" / "adapters" / adapter.version / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    restarted = student()
    with pytest.raises(DataLoss, match="truncated"):
        restarted.evaluate(make_key(restarted, adapter_version=adapter.version))
    with pytest.raises(DataLoss):
        restarted.answer([Question("a", "Who?", "")], adapter_version=adapter.version)
    assert restarted.answer([Question("a", "Who?", "")])
    assert report_of(restarted, make_key(restarted, seed=2))


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"self_edit": SelfEdit(())}, RejectionReason.EMPTY, "documents"),
        ({"self_edit": SelfEdit((TextDocument("x " * 3000),))}, RejectionReason.TOO_LARGE, "documents[0].tokens"),
        ({"self_edit": SelfEdit((TextDocument("x"),) * 129)}, RejectionReason.TOO_LARGE, "documents"),
        (
            {"self_edit": SelfEdit((TextDocument("x"),), Directives(learning_rate=7.0))},
            RejectionReason.OUT_OF_BOUNDS,
            "directives.learning_rate",
        ),
    ],
)
def test_faults_of_the_edit_are_rejections_and_final(
    student: EngineFactory, make_key: KeyFactory, changes: dict[str, Any], reason: RejectionReason, field: str
) -> None:
    engine = student()
    key = make_key(engine, **changes)
    outcome = outcome_of(engine, key)
    assert isinstance(outcome, Rejection)
    assert (outcome.reason, outcome.field) == (reason, field)
    assert outcome.allowed or reason is RejectionReason.EMPTY
    assert engine.get_evaluation(key.id).outcome == outcome
    with pytest.raises(PreconditionFailed, match="rejected"):
        engine.commit(key.id)


def test_an_exploding_edit_is_rejected_as_diverged(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student(bounds={"max_learning_rate": 1e38})
    key = make_key(engine)
    settings = dataclasses.replace(key.settings, learning_rate=1e37, max_grad_norm=0.0, epochs=30)
    outcome = outcome_of(engine, dataclasses.replace(key, settings=settings))
    assert isinstance(outcome, Rejection)
    assert outcome.reason is RejectionReason.DIVERGED
    assert report_of(engine, key)


def test_what_does_not_fit_the_student_is_refused_at_once(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student()
    with pytest.raises(PreconditionFailed, match=r"key\.base_revision is 'other', this student's is '[0-9a-f]+'"):
        engine.evaluate(make_key(engine, base_revision="other"))
    with pytest.raises(PreconditionFailed, match="engine_revision"):
        engine.evaluate(make_key(engine, engine_revision="0"))
    with pytest.raises(NotFound):
        engine.evaluate(make_key(engine, adapter_version="0" * 64))
    with pytest.raises(InvalidInput, match="adapter_version"):
        engine.evaluate(make_key(engine, adapter_version="../../etc"))
    with pytest.raises(InvalidInput, match="loglik"):
        engine.evaluate(make_key(engine, graders=("judge",)))
    with pytest.raises(InvalidInput, match=r"key\.quiz\.questions\[0\]\.text"):
        engine.evaluate(make_key(engine, quiz=Quiz((Question("q", "why " * 4000, "so"),))))
    key = make_key(engine)
    with pytest.raises(InvalidInput, match="rank"):
        engine.evaluate(dataclasses.replace(key, settings=dataclasses.replace(key.settings, rank=500)))
    with pytest.raises(InvalidInput, match="q_proj"):
        engine.evaluate(dataclasses.replace(key, settings=dataclasses.replace(key.settings, target_modules=("nope",))))
    for call in (engine.get_evaluation, engine.cancel_evaluation, engine.commit):
        with pytest.raises(NotFound):
            call("f" * 64)


def test_cancel_stops_between_steps_and_stores_nothing(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student()
    key = slow_key(make_key, engine)
    training = threading.Event()
    job = engine.evaluate(key, watcher=lambda event: training.set() if getattr(event, "steps_done", 0) else None)
    assert training.wait(60)
    assert engine.cancel_evaluation(key.id)
    assert job.done.wait(10)
    assert isinstance(job.outcome, Failure)
    assert not job.outcome.retryable
    assert not engine.cancel_evaluation(key.id)
    assert engine.get_evaluation(key.id).outcome == job.outcome
    assert value(engine, "tutelage_student_evaluations_total", outcome="cancelled") == 1
    assert report_of(engine, make_key(engine))


def test_an_unwatched_evaluation_ends_with_its_lease(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student(lease_s=0.5)
    key = slow_key(make_key, engine)
    events: list[object] = []
    job = engine.evaluate(key, watcher=events.append)
    time.sleep(1.2)
    assert not job.done.is_set()
    engine.detach(job, events.append)
    # A bound method is equal to itself, so the detach above found it.
    assert job.done.wait(10)
    assert isinstance(job.outcome, Failure)
    assert job.outcome.retryable
    assert "watched" in job.outcome.message


def test_a_full_queue_is_exhausted_with_a_time_to_retry(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student(max_queue=1)
    jobs = []
    for seed in range(2):
        jobs.append(engine.evaluate(slow_key(make_key, engine, seed=seed), lease_s=60))
        time.sleep(0.3)
    with pytest.raises(Exhausted) as caught:
        engine.evaluate(slow_key(make_key, engine, seed=3), lease_s=60)
    assert (caught.value.retry_after_s or 0) > 0
    for job in jobs:
        engine.cancel_evaluation(job.id)
        assert job.done.wait(10)


FULL = (
    torch.OutOfMemoryError("CUDA out of memory"),
    *map(RuntimeError, ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED", "could not create a primitive", "std::bad_alloc")),
)


@pytest.mark.parametrize("fault", [*FULL, ValueError("a bug"), RuntimeError("CUDA error: an illegal memory access")])
def test_a_crash_is_a_retryable_failure_and_never_a_report(
    student: EngineFactory, make_key: KeyFactory, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    engine = student()
    key = make_key(engine)

    def broken(bank: Any, slots: Any, max_tokens: Any) -> Any:
        raise StepFailed(list(slots), fault)

    with monkeypatch.context() as patch:
        patch.setattr(room_module, "step", broken)
        outcome = outcome_of(engine, key)
    assert isinstance(outcome, Failure)
    assert outcome.retryable
    assert ("out of memory" in outcome.message) is (fault in FULL)
    # Nothing final was stored: asked again, it is evaluated.
    assert report_of(engine, key)


def test_a_few_shot_task_is_graded_by_exact_match(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student()
    edit = SelfEdit(tuple(question_answer(f"1 2 {i}", f"{i} 2 1") for i in range(3)))
    key = make_key(
        engine, self_edit=edit, quiz=Quiz((Question("q", "1 2 1", "1 2 1"),)), retention_quiz=Quiz(), graders=("exact",)
    )
    settings = dataclasses.replace(key.settings, epochs=30, rank=16, alpha=32, learning_rate=1e-2)
    report = report_of(engine, dataclasses.replace(key, settings=settings))
    assert report.after.scores["exact"] in (0.0, 1.0)
    assert report.retention_after.answers == ()


def test_weights_no_longer_held_cannot_be_committed(
    student: EngineFactory, make_key: KeyFactory, tmp_path: Path
) -> None:
    engine = student(hold_s=0)
    key = make_key(engine)
    report_of(engine, key)
    with pytest.raises(PreconditionFailed, match="no longer held"):
        engine.commit(key.id)


def test_directives_change_what_is_trained_with(student: EngineFactory, make_key: KeyFactory) -> None:
    engine = student(bounds={"clamp": True, "max_epochs": 6})
    key = make_key(engine)
    edit = dataclasses.replace(key.self_edit, directives=Directives(epochs=50, rank=8))
    report = report_of(engine, dataclasses.replace(key, self_edit=edit))
    assert (report.effective_settings.epochs, report.effective_settings.rank) == (6, 8)
    assert report.effective_settings.alpha == 16
    assert report.clamped_fields == ("epochs",)
    assert report.cost.steps == 12


def test_of_too_many_held_weights_the_oldest_go_and_damaged_ones_are_data_loss(
    student: EngineFactory, make_key: KeyFactory, tmp_path: Path
) -> None:
    engine = student(max_held_gib=1e-9)
    old, new = make_key(engine), make_key(engine, seed=8)
    report_of(engine, old)
    report_of(engine, new)
    with pytest.raises(PreconditionFailed, match="no longer held"):
        engine.commit(old.id)
    held = tmp_path / "student" / "held" / f"{new.id}.safetensors"
    whole = held.read_bytes()
    held.write_bytes(whole[:-1])
    with pytest.raises(DataLoss, match="truncated"):
        engine.commit(new.id)
    held.write_bytes(whole)
    assert engine.commit(new.id)
