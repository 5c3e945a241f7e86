"""What the scheduler's worker does: jobs become guests of the room, and their outcomes final in the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from student.bank_adapter import BankAdapter
from student.capacity import Capacity, Load
from student.evaluation import Ended, Evaluation, QuizSettings
from student.evaluations import EvaluationStore
from student.memory import give_back_memory, memory_faults
from student.metrics import StudentMetrics
from student.room import Guest, Room
from student.scheduler import Job, JobOutcome, Progress
from tutelage.domain.errors import DataLoss, Exhausted, NotFound
from tutelage.domain.evaluation import Bounds, EvaluationOutcome, Failure
from tutelage.models.loading import LoadedModel


def mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


class RoomWork:
    """A `student.scheduler.Work` on a room."""

    def __init__(
        self,
        room: Room,
        loaded: LoadedModel,
        parent_of: Callable[[str], BankAdapter | None],
        *,
        bounds: Bounds,
        quiz: QuizSettings,
        store: EvaluationStore,
        metrics: StudentMetrics,
        capacity: Capacity,
    ) -> None:
        self._capacity = capacity
        self._room, self._loaded, self._parent_of = room, loaded, parent_of
        self._bounds, self._quiz, self._store, self._metrics = bounds, quiz, store, metrics
        self._jobs: dict[int, tuple[Guest, Job]] = {}

    @property
    def slots(self) -> int:
        return self._room.slots

    @property
    def free(self) -> int:
        return self._room.free

    def admit(self, job: Job, progress: Progress) -> JobOutcome | None:
        # It may have been finished between the question for it and its place in the queue.
        stored = self._store.outcome(job.id)
        if stored is not None:
            return stored
        try:
            parent = self._parent_of(job.key.adapter_version)
        except (NotFound, DataLoss) as error:
            # Deleted or damaged since the evaluation was asked for, which is no crash; a replica may have it.
            return Failure(f"key.adapter_version: {error}", retryable=True)
        with memory_faults():
            evaluation = Evaluation(
                self._loaded, job.key, parent, bounds=self._bounds, quiz=self._quiz, store=self._store
            )
        if evaluation.rejection is not None:
            return self._finish(job, Ended(evaluation.rejection))
        needed = self._capacity.needed(Load(evaluation.effective.settings, evaluation.rows, parent))
        if needed > self._capacity.budget:
            limit = f"training may take {mib(self._capacity.budget)} (max_training_gib)"
            return Exhausted(f"the evaluation needs {mib(needed)} alone, {limit}")
        guest = Guest(evaluation, job.stop.is_set, progress)
        self._jobs[id(guest)] = (guest, job)
        self._room.admit(guest)
        return None

    def advance(self) -> Sequence[tuple[Job, JobOutcome]]:
        before = self._room.trained_tokens
        departures = self._room.advance()
        self._metrics.training_tokens.inc(self._room.trained_tokens - before)
        if self._room.last_step_seconds is not None:
            self._metrics.step_seconds.observe(self._room.last_step_seconds)
        ended: list[tuple[Job, JobOutcome]] = []
        for guest, result in departures:
            _, job = self._jobs.pop(id(guest))
            ended.append((job, job.context.run(self._finish, job, result) if isinstance(result, Ended) else result))
        if ended:
            give_back_memory()
        return ended

    def abandon(self) -> None:
        self._jobs.clear()
        self._room.abandon()

    def _finish(self, job: Job, ended: Ended) -> EvaluationOutcome | Exception:
        try:
            return self._store.finish(job.key, ended.outcome, ended.weights)
        except Exception as error:
            # A full disk is this job's fault alone.
            return error
