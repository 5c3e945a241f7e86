"""Sixteen clients that call Evaluate at once on a served student: trained together, each with its own report.

That they are trained together is counted, not timed: a step of the room takes all its slots one step on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tests.student.served_student import PATIENCE_S, Served, held, served
from tutelage.domain.description import StudentDescription
from tutelage.domain.evaluation import EvaluationKey, EvaluationReport, InnerLoopSettings
from tutelage.domain.self_edit import Directives, SelfEdit, question_answer
from tutelage.domain.task import Question, Quiz

CLIENTS = 16


def keys_of(own: StudentDescription) -> list[EvaluationKey]:
    """One for each client; 2 to 12 steps, of different lengths, ranks and rates."""
    keys = []
    for i in range(CLIENTS):
        documents = [question_answer(f"Which bird of {j}?", "heron " * (1 + (i + j) % 4)) for j in range(1 + i % 3)]
        directives = Directives(learning_rate=(1e-3, 5e-3)[i % 2], epochs=2 + i % 3, rank=(2, 4, 8)[i % 3])
        keys.append(
            EvaluationKey(
                base_model=own.base_model,
                base_revision=own.base_revision,
                quantisation=own.quantisation,
                adapter_version="",
                self_edit=SelfEdit(tuple(documents), directives),
                quiz=Quiz((Question("q1", f"Which bird of {i}?", "heron"),)),
                retention_quiz=Quiz(),
                graders=("contains", "loglik"),
                settings=InnerLoopSettings(rank=4, alpha=8, batch_size=1),
                engine_revision=own.engine_revision,
                seed=i,
            )
        )
    return keys


def steps_of(key: EvaluationKey) -> int:
    epochs = key.self_edit.directives.epochs
    assert epochs is not None
    return len(key.self_edit.documents) * epochs


async def report_of(student: Served, key: EvaluationKey) -> EvaluationReport:
    async with student.client() as client:
        *_, report = [event async for event in client.evaluate(key)]
    assert isinstance(report, EvaluationReport), report
    return report


async def asked_at_once(student: Served, keys: Sequence[EvaluationKey]) -> list[EvaluationReport]:
    """Each by a client of its own; the first is begun when all wait, so that what is shared can be counted."""
    async with held(student.engine):
        asking = [asyncio.create_task(report_of(student, key)) for key in keys]
        async with asyncio.timeout(PATIENCE_S), student.client() as client:
            while (await client.describe()).queued < len(keys):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    return list(await asyncio.gather(*asking))


def timeless(report: EvaluationReport) -> EvaluationReport:
    cost = replace(report.cost, train_seconds=0, quiz_seconds=0, baseline_cached=False)
    return replace(report, cost=cost, finished_at=report.finished_at.min)


async def trained_together(tiny_path: Path, tmp_path: Path) -> None:
    async with served(tiny_path, tmp_path, slots=CLIENTS) as student:
        async with student.client() as client:
            keys = keys_of(await client.describe())
        reports = await asked_at_once(student, keys)
        steps = [steps_of(key) for key in keys]
        # As many steps as the longest takes, where one after another would take the sum.
        assert student.room_steps == max(steps) < sum(steps) / 8
        for key, report in zip(keys, reports, strict=True):
            assert report.evaluation_id == key.id
            assert report.cost.steps == steps_of(key)
            assert report.effective_settings.rank == key.self_edit.directives.rank
            assert report.after.answers != report.before.answers
        assert len({report.cost.last_loss for report in reports}) == CLIENTS


def test_sixteen_clients_are_trained_together(tiny_path: Path, tmp_path: Path) -> None:
    asyncio.run(trained_together(tiny_path, tmp_path))


async def crowd_and_quiet(tiny_path: Path, tmp_path: Path) -> None:
    crowded, quiet = tmp_path / "crowded", tmp_path / "quiet"
    crowded.mkdir()
    quiet.mkdir()
    async with served(tiny_path, crowded, deterministic=True) as student:
        async with student.client() as client:
            own = await client.describe()
        assert (own.deterministic, own.slots, own.compute_dtype) == (True, 1, "bfloat16")
        keys = keys_of(own)
        together = [timeless(report) for report in await asked_at_once(student, keys)]
        assert student.room_steps == sum(steps_of(key) for key in keys)
    async with served(tiny_path, quiet, deterministic=True) as student:
        alone = [timeless(await report_of(student, key)) for key in reversed(keys)]
    assert together == alone[::-1]


def test_a_deterministic_student_gives_sixteen_clients_the_bits_of_a_quiet_one(tiny_path: Path, tmp_path: Path) -> None:
    asyncio.run(crowd_and_quiet(tiny_path, tmp_path))
