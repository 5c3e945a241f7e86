"""The student in plain Python: checks what is asked, schedules evaluations, commits, answers.

All methods are safe for several threads. They block, `begin_...` only to check; the scheduler's worker has the model.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from importlib.metadata import PackageNotFoundError, version

import torch

from student.adapters import AdapterStore
from student.bank import Bank
from student.bank_adapter import BankAdapter
from student.capacity import Capacity
from student.config import StudentSettings
from student.evaluation import QuizSettings
from student.evaluation_check import quiz_violations, setting_violations
from student.evaluations import EvaluationStore
from student.lora import concatenate, recompress
from student.memory import memory_faults
from student.metrics import StudentMetrics
from student.packing import enable_packing
from student.quiz import GRADERS, Sitting, check_quiz
from student.quiz_room import take_quizzes
from student.room import Room
from student.scheduler import Job, Scheduler, Watcher
from student.versions import Versions
from student.work import RoomWork
from tutelage.domain.canonical import content_hash
from tutelage.domain.description import (
    Adapter,
    EvaluationPhase,
    EvaluationProgress,
    EvaluationState,
    EvaluationStatus,
    StudentDescription,
)
from tutelage.domain.errors import DataLoss, FieldViolation, InvalidInput, NotFound, PreconditionFailed
from tutelage.domain.evaluation import Answer, EvaluationKey, EvaluationReport, Failure, InnerLoopSettings, QuizResult
from tutelage.domain.task import Question, Quiz
from tutelage.models.loading import LoadedModel

ENGINE_REVISION = "10"
"""Raised by every change of the code that changes what the same key results in."""

log = logging.getLogger(__name__)


def package_version() -> str:
    try:
        return version("tutelage")
    except PackageNotFoundError:
        return "0"


class StudentEngine:
    """One base model with its bank, its adapter versions and its evaluations."""

    def __init__(self, loaded: LoadedModel, settings: StudentSettings, metrics: StudentMetrics) -> None:
        self._loaded, self.settings, self._metrics = loaded, settings, metrics
        # Checks run beside the slots; a tokenizer is not made for two threads.
        self._front = dataclasses.replace(self._loaded, tokenizer=copy.deepcopy(self._loaded.tokenizer))
        self._front_lock = threading.Lock()
        self._bank = Bank(loaded)
        enable_packing(loaded.model)
        self.bounds = settings.bounds.to_domain()
        self._quiz = QuizSettings(settings.max_new_tokens, settings.quiz_batch_size, apart=settings.deterministic)
        # What is not in the key but changes its result belongs to the revision.
        decisive = [
            self._loaded.compute_dtype,
            settings.max_new_tokens,
            self.bounds,
            self._loaded.context_length,
            settings.deterministic,
            settings.max_step_tokens,
        ]
        if settings.deterministic:
            # They only change roundings, which a student of many slots does not promise to repeat.
            decisive += [settings.quiz_batch_size, torch.get_num_threads(), loaded.device]
        decisive = [part if dataclasses.is_dataclass(part) else str(part) for part in decisive]
        self.engine_revision = f"{ENGINE_REVISION}.{content_hash(decisive)[:8]}"
        self._adapters = AdapterStore(settings.data_dir / "adapters")
        self._store = EvaluationStore(
            settings.data_dir, hold_s=settings.hold_s, max_held_bytes=int(settings.max_held_gib * 2**30)
        )
        self._versions = Versions(self._adapters, loaded.revision, self._bank.device, settings.loaded_adapters)
        capacity = Capacity.of(self._bank, settings, self._versions.held_bytes, self._versions.let_go)
        room = Room(self._bank, self._store, self._quiz, capacity)
        work = RoomWork(
            room,
            loaded,
            self._versions.get,
            bounds=self.bounds,
            quiz=self._quiz,
            store=self._store,
            metrics=metrics,
            capacity=capacity,
        )
        self._room = room
        self._scheduler = Scheduler(work, max_queue=settings.max_queue, metrics=metrics)
        self._measure_adapters()

    def close(self) -> None:
        """Stops what is under way, as retryable failures."""
        self._scheduler.close()
        self._bank.close()
        self._store.close()

    def healthy(self) -> bool:
        """Whether the worker lives and, if it is idle, its model computes."""
        if not self._scheduler.alive:
            return False
        if not self._scheduler.idle:
            return True
        sitting = Sitting((Question("health", "Are you there?", ""),), ())
        answers = self._scheduler.call(lambda: take_quizzes(self._bank, [sitting], max_new_tokens=1, batch_size=1))
        try:
            return len(answers.result(timeout=30)) == 1
        except TimeoutError:
            # An evaluation came first.
            return True

    def describe(self) -> StudentDescription:
        loaded = self._loaded
        return StudentDescription(
            base_model=loaded.name,
            base_revision=loaded.revision,
            quantisation=loaded.quantisation,
            device=str(loaded.device),
            compute_dtype=str(loaded.compute_dtype).removeprefix("torch."),
            parameters=loaded.parameters,
            slots=self._room.slots,
            free_slots=self._scheduler.free_slots,
            queued=self._scheduler.queued,
            bounds=self.bounds,
            graders=GRADERS,
            engine_revision=self.engine_revision,
            deterministic=self.settings.deterministic,
            context_length=loaded.context_length,
            version=package_version(),
        )

    def check(self, key: EvaluationKey) -> None:
        """Raises PreconditionFailed, InvalidInput, NotFound or DataLoss before anything is begun."""
        own = self.describe()
        for name in ("base_model", "base_revision", "quantisation", "engine_revision"):
            asked, mine = getattr(key, name), getattr(own, name)
            if asked != mine:
                raise PreconditionFailed(f"key.{name} is {asked!r}, this student's is {mine!r}")
        graders, allowed = key.graders or ("",), "at least one of " + ", ".join(GRADERS)
        violations = [FieldViolation("key.graders", name, allowed) for name in graders if name not in GRADERS]
        if len(set(graders)) < len(graders):
            violations.append(FieldViolation("key.graders", f"{len(graders)} names", "each name once"))
        if not key.quiz.questions:
            violations.append(FieldViolation("key.quiz", "", "at least one question"))
        violations += self.setting_violations(key.settings)
        violations += self.quiz_violations(key.quiz, "key.quiz")
        violations += self.quiz_violations(key.retention_quiz, "key.retention_quiz")
        if violations:
            raise InvalidInput(violations)
        self._versions.get(key.adapter_version)

    def setting_violations(self, settings: InnerLoopSettings) -> list[FieldViolation]:
        """What this student cannot do with a run's settings."""
        return setting_violations(self._loaded.model, self._bank.projections, settings, self.bounds)

    def quiz_violations(self, quiz: Quiz, field: str) -> list[FieldViolation]:
        """Why this student cannot answer the quiz of that field."""
        with self._front_lock:
            return quiz_violations(self._front, quiz, self.settings.max_new_tokens, field)

    def evaluate(self, key: EvaluationKey, *, lease_s: float = 0, watcher: Watcher | None = None) -> Job:
        """Starts the evaluation, attaches to it, or gives the stored outcome as a job that has ended.

        The watcher is called from other threads with each progress and at last with the outcome; it must not block.
        """
        stored = self._store.outcome(key.id)
        if stored is not None:
            job = Job(key, key.id, lease_s, state=EvaluationState.DONE, outcome=stored)
            job.done.set()
            if watcher is not None:
                watcher(stored)
            return job
        if not 0 <= lease_s < math.inf:
            raise InvalidInput.of("lease_s", lease_s, "seconds from 0")
        self.check(key)
        return self._scheduler.submit(key, lease_s or self.settings.lease_s, watcher)

    def detach(self, job: Job, watcher: Watcher) -> None:
        """The watcher left: the job goes on for its lease."""
        self._scheduler.detach(job, watcher)

    def get_evaluation(self, evaluation_id: str) -> EvaluationStatus:
        """Raises NotFound for one that is neither stored nor under way nor failed of late."""
        job = self._scheduler.find(evaluation_id)
        stored = self._store.outcome(evaluation_id)
        if stored is not None:
            progress = job.progress if job else EvaluationProgress(EvaluationPhase.QUIZ)
            return EvaluationStatus(EvaluationState.DONE, progress, stored)
        if job is None:
            raise NotFound("evaluation", evaluation_id)
        return job.status()

    def cancel_evaluation(self, evaluation_id: str) -> bool:
        """False when it had ended before. Raises NotFound for one never heard of."""
        if self._scheduler.cancel(evaluation_id, Failure("cancelled on request", retryable=False)):
            return True
        self.get_evaluation(evaluation_id)
        return False

    def commit(self, evaluation_id: str) -> tuple[Adapter, QuizResult, QuizResult]:
        """Keeps the weights that earned the report, joined with their parent, once those took both quizzes again.

        Raises NotFound, or PreconditionFailed when there is no report or its weights are no longer held.
        """
        return self.begin_commit(evaluation_id).result()

    def begin_commit(self, evaluation_id: str) -> Future[tuple[Adapter, QuizResult, QuizResult]]:
        """`commit` for who has no thread to wait in. Raises Exhausted when too many calls wait."""
        return self._scheduler.call(lambda: self._commit(evaluation_id))

    def answer(
        self, questions: Sequence[Question], *, adapter_version: str = "", max_new_tokens: int = 0
    ) -> tuple[Answer, ...]:
        """Greedy answers in the order of the questions, scored by all graders where a question has a gold answer."""
        return self.begin_answer(questions, adapter_version=adapter_version, max_new_tokens=max_new_tokens).result()

    def begin_answer(
        self,
        questions: Sequence[Question],
        *,
        adapter_version: str = "",
        max_new_tokens: int = 0,
        stop: threading.Event | None = None,
    ) -> Future[tuple[Answer, ...]]:
        """`answer` for who has no thread to wait in. Raises Exhausted when too many calls wait."""
        if max_new_tokens < 0:
            raise InvalidInput.of("max_new_tokens", max_new_tokens, "0 or more")
        length = max_new_tokens or self.settings.max_new_tokens
        if not questions:
            raise InvalidInput.of("questions", "", "at least one question")
        with self._front_lock:
            check_quiz(self._front, questions, length, "")
        parent = self._versions.get(adapter_version)
        stopped = stop.is_set if stop is not None else lambda: False
        sitting = Sitting(tuple(questions), GRADERS, (parent,) if parent is not None else ())
        return self._scheduler.call(lambda: self._sit(sitting, length, stopped))

    def _sit(self, sitting: Sitting, max_new_tokens: int, stopped: Callable[[], bool]) -> tuple[Answer, ...]:
        with memory_faults():
            (answers,) = take_quizzes(
                self._bank,
                [sitting],
                max_new_tokens=max_new_tokens,
                batch_size=self._quiz.batch_size,
                stop=stopped,
            )
        if isinstance(answers, ArithmeticError):
            raise answers
        return answers

    def list_adapters(self) -> tuple[Adapter, ...]:
        """Oldest first."""
        return self._adapters.list()

    def delete_adapter(self, adapter_version: str) -> None:
        """Raises NotFound. Versions trained over it stand on their own and stay."""
        self._adapters.delete(adapter_version)
        self._versions.forget(adapter_version)
        self._measure_adapters()

    def _commit(self, evaluation_id: str) -> tuple[Adapter, QuizResult, QuizResult]:
        earlier = self._store.committed(evaluation_id)
        if earlier is not None:
            try:
                return self._adapters.get(earlier[0]), *earlier[1:]
            except (NotFound, DataLoss):
                log.info("version %s of evaluation %s is gone; committing anew", earlier[0], evaluation_id)
        outcome, key = self._store.outcome(evaluation_id), self._store.key(evaluation_id)
        if outcome is None or key is None:
            self.get_evaluation(evaluation_id)
            raise PreconditionFailed(f"evaluation {evaluation_id} has no report")
        if not isinstance(outcome, EvaluationReport):
            raise PreconditionFailed(f"evaluation {evaluation_id} was rejected ({outcome.reason.value})")
        fresh = self._store.held_weights(evaluation_id)
        if fresh is None:
            raise PreconditionFailed(
                f"the weights of evaluation {evaluation_id} are no longer held (hold_s is {self.settings.hold_s:g})"
            )
        parent = self._versions.get(key.adapter_version)
        with memory_faults():
            whole = concatenate(parent.weights(), fresh) if parent is not None else fresh
            whole = recompress(whole, self.settings.max_adapter_rank)
            taught = BankAdapter.frozen(whole, self._bank.device)
        # First, so that a version that cannot be quizzed is none.
        quiz, retention = (self._result(each, key, taught) for each in (key.quiz, key.retention_quiz))
        adapter = self._adapters.save(
            whole,
            parent=key.adapter_version,
            evaluation_id=evaluation_id,
            base_model=self._loaded.name,
            base_revision=self._loaded.revision,
        )
        self._store.keep_commit(evaluation_id, adapter.version, quiz, retention)
        self._measure_adapters()
        return adapter, quiz, retention

    def _result(self, quiz: Quiz, key: EvaluationKey, adapter: BankAdapter) -> QuizResult:
        """What a version answers to a quiz of an evaluation."""
        if not quiz.questions:
            return QuizResult()
        sitting = Sitting(quiz.questions, key.graders, (adapter,))
        return QuizResult.of(self._sit(sitting, self._quiz.max_new_tokens, lambda: False))

    def _measure_adapters(self) -> None:
        self._metrics.adapter_bytes.set(sum(adapter.bytes for adapter in self._adapters.list()))
