"""One evaluation from its key to its stored outcome: asked for by id, so asking again attaches."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator import metrics
from orchestrator.config import RetrySettings
from orchestrator.dispatch import backoff_s
from orchestrator.machine import Evaluate
from orchestrator.records import Run, StoredEvaluation
from orchestrator.store import Store
from orchestrator.students import Students
from tutelage.domain.canonical import derived_seed
from tutelage.domain.description import EvaluationProgress
from tutelage.domain.errors import (
    AlreadyExists,
    DataLoss,
    Exhausted,
    InvalidInput,
    NotFound,
    PreconditionFailed,
    TutelageError,
    Unavailable,
)
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, Failure
from tutelage.domain.reward import Reward, reward_of
from tutelage.domain.self_edit import Rejection, SelfEdit

logger = logging.getLogger(__name__)

FINAL = (InvalidInput, NotFound, PreconditionFailed, AlreadyExists, DataLoss)
"""Faults that asking again does not cure."""


def round_seed(run: Run, work: Evaluate) -> int:
    """The same for all candidates of a group, so that they differ by their edits only."""
    return derived_seed(run.config.seed, work.task, work.round, work.repeat)


def evaluation_key(run: Run, work: Evaluate, edit: SelfEdit, adapter_version: str, seed: int) -> EvaluationKey:
    """The key, from the student as it was when the run started."""
    student = run.students[work.student].description
    return EvaluationKey(
        base_model=student.base_model,
        base_revision=student.base_revision,
        quantisation=student.quantisation,
        adapter_version=adapter_version,
        self_edit=edit,
        quiz=run.tasks[work.task].quiz,
        retention_quiz=run.retention_quiz,
        graders=run.config.graders,
        settings=run.config.inner_loop_settings(),
        engine_revision=student.engine_revision,
        seed=seed,
    )


def scored(run: Run, outcome: EvaluationOutcome) -> tuple[EvaluationOutcome, Reward | None]:
    """The reward of an outcome; a report that cannot be scored is a failure, and a failure has none."""
    if isinstance(outcome, Rejection):
        earned = run.config.reward.rejected_reward
        return outcome, None if earned is None else Reward(earned, {})
    if isinstance(outcome, Failure):
        return outcome, None
    try:
        reward = reward_of(outcome, run.config.reward_settings())
    except KeyError as error:
        return Failure(f"the report has no score by grader {error}", retryable=False), None
    if not math.isfinite(reward.value):
        return Failure("the report's scores are not finite numbers", retryable=False), None
    return outcome, reward


@dataclass(frozen=True)
class Evaluator:
    """Runs evaluations of one run on its students and stores how they ended."""

    run: Run
    store: Store
    students: Students
    retry: RetrySettings
    lease_s: float

    async def evaluate(
        self, work: Evaluate, key: EvaluationKey, phase: str, candidate_ids: Sequence[str]
    ) -> StoredEvaluation:
        """The stored, final evaluation. Cancelling detaches: the student goes on for its lease."""
        run_id, evaluation_id = self.run.run_id, key.id
        row = await self.store.begin_evaluation(run_id, evaluation_id, work, phase, key.adapter_version)
        if row.final:
            return row
        began = time.monotonic()
        outcome = await self._until_final(work, key, row.attempts)
        outcome, reward = scored(self.run, outcome)
        seconds = time.monotonic() - began
        stored = await self.store.end_evaluation(
            run_id, evaluation_id, work.student, outcome, reward, seconds, candidate_ids
        )
        metrics.EVALUATIONS.labels(stored.state).inc()
        metrics.EVALUATION_SECONDS.labels(stored.state).observe(seconds)
        if stored.reward is not None:
            metrics.REWARD.observe(stored.reward)
        if stored.state == "report":
            metrics.LAST_SUCCESS.set_to_current_time()
        return stored

    async def _until_final(self, work: Evaluate, key: EvaluationKey, attempts: int) -> EvaluationOutcome:
        """A report, a rejection, or the failure that is left after the last attempt."""
        limit = self.run.config.deadlines.attempts
        while True:
            outcome, reason, wait_s = await self._attempt(work.student, key)
            attempts += 1
            if not isinstance(outcome, Failure) or not outcome.retryable:
                return outcome
            metrics.WORKERS_LOST.labels(reason).inc()
            if attempts >= limit:
                return Failure(f"given up after {attempts} attempts: {outcome.message}", retryable=False)
            metrics.RETRIES.labels("student").inc()
            pause = backoff_s(attempts, self.retry.initial_s, self.retry.factor, self.retry.maximum_s)
            pause = min(self.retry.maximum_s, max(pause, wait_s or 0.0))
            detail = {
                "evaluation": key.id,
                "student": work.student,
                "task": work.task,
                "round": work.round,
                "attempt": attempts,
                "of": limit,
                "wait_s": pause,
                "reason": outcome.message,
            }
            await self.store.note_attempt(self.run.run_id, key.id, work.student, detail)
            logger.warning("evaluation %s on %s: %s", key.id[:12], work.student, outcome.message)
            await asyncio.sleep(pause)

    async def _attempt(self, student: str, key: EvaluationKey) -> tuple[EvaluationOutcome, str, float | None]:
        """The outcome; for a failure also its kind (a metric's label) and what wait the student asked for."""
        deadline_s = self.run.config.deadlines.evaluation_s
        ended: EvaluationOutcome | None = None
        try:
            stream = self.students.client(student).evaluate(
                key, lease_s=self.lease_s, run_id=self.run.run_id, timeout_s=deadline_s
            )
            async for event in stream:
                if not isinstance(event, EvaluationProgress):
                    ended = event
        except FINAL as error:
            return Failure(f"{type(error).__name__}: {error}", retryable=False), "failed", None
        except Unavailable as error:
            self.students.seen(student, False)
            return Failure(f"student {student!r}: {error}"), "unavailable", error.retry_after_s
        except Exhausted as error:
            return Failure(f"student {student!r}: {error}"), "exhausted", error.retry_after_s
        except TutelageError as error:
            return Failure(f"student {student!r}: {error}"), "internal", None
        self.students.seen(student, True)
        if ended is None:
            return Failure(f"student {student!r} ended the stream without an outcome"), "internal", None
        if isinstance(ended, EvaluationReport) and ended.evaluation_id != key.id:
            return Failure(f"student {student!r} reported evaluation {ended.evaluation_id!r}", False), "failed", None
        return ended, "failed", None
