"""The student in plain Python: checks what is asked, schedules evaluations, commits, answers.

All methods block and are safe for several threads; the models are only touched on the scheduler's slots.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from student.adapted import adapted, linear_layers, projections
from student.adapters import AdapterStore
from student.bounds import check_settings
from student.config import StudentSettings
from student.evaluation import Evaluation, QuizSettings
from student.evaluations import EvaluationStore
from student.lora import LoraWeights, concatenate, recompress
from student.memory import give_back_memory, memory_faults
from student.metrics import StudentMetrics
from student.quiz import GRADERS, check_quiz, take_quiz
from student.scheduler import Job, Scheduler, Watcher
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
from tutelage.domain.evaluation import Answer, EvaluationKey, EvaluationOutcome, EvaluationReport, Failure, QuizResult
from tutelage.domain.task import Question
from tutelage.models.loading import LoadedModel

ENGINE_REVISION = "2"
"""Raised by every change of the code that changes what the same key results in."""

log = logging.getLogger(__name__)


def package_version() -> str:
    try:
        return version("tutelage")
    except PackageNotFoundError:
        return "0"


class StudentEngine:
    """One base model (once a slot), its adapter versions and its evaluations."""

    def __init__(self, models: Sequence[LoadedModel], settings: StudentSettings, metrics: StudentMetrics) -> None:
        self._models, self.settings, self._metrics = list(models), settings, metrics
        self._loaded = self._models[0]
        # Checks run beside the slots; a tokenizer is not made for two threads.
        self._front = dataclasses.replace(self._loaded, tokenizer=copy.deepcopy(self._loaded.tokenizer))
        self._front_lock = threading.Lock()
        self._linear = linear_layers(self._loaded)
        self.bounds = settings.bounds.to_domain()
        self._quiz = QuizSettings(settings.max_new_tokens, settings.quiz_batch_size)
        # What is not in the key but changes its result belongs to the revision.
        decisive = [self._loaded.compute_dtype, settings.max_new_tokens, self.bounds, self._loaded.context_length]
        decisive = [part if dataclasses.is_dataclass(part) else str(part) for part in decisive]
        self.engine_revision = f"{ENGINE_REVISION}.{content_hash(decisive)[:8]}"
        self._adapters = AdapterStore(settings.data_dir / "adapters")
        self._store = EvaluationStore(
            settings.data_dir, hold_s=settings.hold_s, max_held_bytes=int(settings.max_held_gib * 2**30)
        )
        self._in_memory: OrderedDict[str, LoraWeights] = OrderedDict()
        self._memory_lock = threading.Lock()
        self._scheduler = Scheduler(self._work, slots=len(self._models), max_queue=settings.max_queue, metrics=metrics)
        self._measure_adapters()

    def close(self) -> None:
        """Stops what is under way, as retryable failures."""
        self._scheduler.close()
        self._store.close()

    def healthy(self) -> bool:
        """Whether the slots live and, if one is free, its model computes."""
        if not self._scheduler.alive:
            return False
        if not self._scheduler.free_slots:
            return True
        prompt = Question("health", "Are you there?", "")
        answers = self._scheduler.call(
            lambda slot: take_quiz(
                self._models[slot],
                self._models[slot].model,
                [prompt],
                (),
                max_new_tokens=1,
                batch_size=1,
                stop=threading.Event(),
            )
        )
        try:
            return len(answers.result(timeout=30)) == 1
        except TimeoutError:
            # An evaluation took the slot first.
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
            slots=len(self._models),
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
        violations = [
            FieldViolation("key.graders", name, ", ".join(GRADERS)) for name in key.graders if name not in GRADERS
        ]
        if not key.graders:
            violations.append(FieldViolation("key.graders", "", "at least one of " + ", ".join(GRADERS)))
        if not key.quiz.questions:
            violations.append(FieldViolation("key.quiz", "", "at least one question"))
        for field, quiz in (("quiz", key.quiz), ("retention_quiz", key.retention_quiz)):
            for i, question in enumerate(quiz.questions):
                if not question.answer.strip():
                    path = f"key.{field}.questions[{i}].answer"
                    violations.append(FieldViolation(path, question.answer, "an answer that is not empty"))
        if violations:
            raise InvalidInput(violations)
        check_settings(key.settings, self.bounds)
        projections(self._linear, key.settings.target_modules)
        with self._front_lock:
            check_quiz(self._front, key.quiz.questions, self.settings.max_new_tokens, "key.quiz")
            check_quiz(self._front, key.retention_quiz.questions, self.settings.max_new_tokens, "key.retention_quiz")
        self._weights(key.adapter_version)

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

    def commit(self, evaluation_id: str) -> tuple[Adapter, QuizResult]:
        """Keeps the weights that earned the report, joined with their parent; the stored version takes the quiz again.

        Raises NotFound, or PreconditionFailed when there is no report or its weights are no longer held.
        """
        return self._scheduler.call(lambda slot: self._commit(self._models[slot], evaluation_id)).result()

    def answer(
        self,
        questions: Sequence[Question],
        *,
        adapter_version: str = "",
        max_new_tokens: int = 0,
        stop: threading.Event | None = None,
    ) -> tuple[Answer, ...]:
        """Greedy answers in the order of the questions, scored by all graders where a question has a gold answer."""
        if max_new_tokens < 0:
            raise InvalidInput.of("max_new_tokens", max_new_tokens, "0 or more")
        length = max_new_tokens or self.settings.max_new_tokens
        if not questions:
            raise InvalidInput.of("questions", "", "at least one question")
        with self._front_lock:
            check_quiz(self._front, questions, length, "")
        weights = self._weights(adapter_version)
        stop = stop or threading.Event()

        def work(slot: int) -> tuple[Answer, ...]:
            loaded = self._models[slot]
            with memory_faults(), adapted(loaded, parent=weights) as model:
                return take_quiz(
                    loaded,
                    model.model,
                    questions,
                    GRADERS,
                    max_new_tokens=length,
                    batch_size=self._quiz.batch_size,
                    stop=stop,
                )

        return self._scheduler.call(work).result()

    def list_adapters(self) -> tuple[Adapter, ...]:
        """Oldest first."""
        return self._adapters.list()

    def delete_adapter(self, adapter_version: str) -> None:
        """Raises NotFound. Versions trained over it stand on their own and stay."""
        self._adapters.delete(adapter_version)
        with self._memory_lock:
            self._in_memory.pop(adapter_version, None)
        self._measure_adapters()

    def _weights(self, adapter_version: str) -> LoraWeights | None:
        if not adapter_version:
            return None
        with self._memory_lock:
            weights = self._in_memory.get(adapter_version)
            if weights is None:
                weights = self._adapters.load(adapter_version, self._loaded.revision)
                self._in_memory[adapter_version] = weights
            self._in_memory.move_to_end(adapter_version)
            while len(self._in_memory) > self.settings.loaded_adapters:
                self._in_memory.popitem(last=False)
            return weights

    def _work(self, slot: int, job: Job, progress: Callable[[EvaluationProgress], None]) -> EvaluationOutcome:
        # It may have been finished between the question for it and its place in the queue.
        stored = self._store.outcome(job.id)
        if stored is not None:
            return stored
        last_step = time.monotonic()

        def observed(now: EvaluationProgress) -> None:
            nonlocal last_step
            moment = time.monotonic()
            if now.phase is EvaluationPhase.TRAINING and now.steps_done > 1:
                self._metrics.step_seconds.observe(moment - last_step)
            last_step = moment
            progress(now)

        with memory_faults():
            ended = Evaluation(
                self._models[slot],
                job.key,
                self._weights(job.key.adapter_version),
                bounds=self.bounds,
                quiz=self._quiz,
                store=self._store,
                stop=job.stop,
                progress=observed,
            ).run()
        give_back_memory()
        if isinstance(ended.outcome, EvaluationReport):
            self._metrics.training_tokens.inc(ended.outcome.cost.tokens)
        return self._store.finish(job.key, ended.outcome, ended.weights)

    def _commit(self, loaded: LoadedModel, evaluation_id: str) -> tuple[Adapter, QuizResult]:
        earlier = self._store.committed(evaluation_id)
        if earlier is not None:
            try:
                return self._adapters.get(earlier[0]), earlier[1]
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
        parent = self._weights(key.adapter_version)
        whole = recompress(concatenate(parent, fresh) if parent else fresh, self.settings.max_adapter_rank)
        adapter = self._adapters.save(
            whole,
            parent=key.adapter_version,
            evaluation_id=evaluation_id,
            base_model=loaded.name,
            base_revision=loaded.revision,
        )
        with memory_faults(), adapted(loaded, parent=self._weights(adapter.version)) as model:
            answers = take_quiz(
                loaded,
                model.model,
                key.quiz.questions,
                key.graders,
                max_new_tokens=self._quiz.max_new_tokens,
                batch_size=self._quiz.batch_size,
                stop=threading.Event(),
            )
        quiz = QuizResult.of(answers)
        self._store.keep_commit(evaluation_id, adapter.version, quiz)
        self._measure_adapters()
        return adapter, quiz

    def _measure_adapters(self) -> None:
        self._metrics.adapter_bytes.set(sum(adapter.bytes for adapter in self._adapters.list()))
