"""The room: evaluations that are trained side by side in the slots of one bank, each entering and leaving on its own.

An evaluation passes through four places: it waits for the answers of the untouched student, trains in a slot, waits for
its quiz with the trained adapter, and ends. `advance` does one piece of work and tells who ended by it. What ends early
(cancelled, diverged, too much for the memory, failed by a grader) leaves its neighbours as they are. Whenever memory
runs out one evaluation ends, so that nothing is tried without end; the others try again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from student.bank import Bank
from student.bank_step import StepFailed, step
from student.capacity import Capacity, Load
from student.evaluation import Ended, Evaluation, QuizSettings
from student.evaluations import EvaluationStore
from student.inner_loop import Cancelled
from student.memory import free_cached, is_out_of_memory, out_of_memory
from student.quiz import GraderFailed, Sitting, asked, graded
from student.quiz_room import answered
from student.slot import Slot
from tutelage.domain.description import EvaluationPhase, EvaluationProgress
from tutelage.domain.errors import TutelageError
from tutelage.domain.evaluation import Answer, Failure, QuizResult

log = logging.getLogger(__name__)
QUIZ_PATIENCE_S = 20.0
"""Most seconds for which a trained adapter waits for others, so that one quiz serves them all."""


@dataclass(eq=False)
class Guest:
    """One evaluation in the room."""

    evaluation: Evaluation
    stopped: Callable[[], bool]
    progress: Callable[[EvaluationProgress], None]
    slot: Slot | None = None
    trained_at: float = 0.0
    context: Context = field(default_factory=copy_context)
    """What is logged about it carries the ids bound where it was made."""


Graded = tuple[Answer, ...] | ArithmeticError | TutelageError
"""The answers of one sitting; else the end of an edit after which likelihoods are no numbers, or a fault."""
Departure = tuple[Guest, Ended | Failure | Exception]


class Room:
    """At most `slots` guests; used by one thread."""

    def __init__(self, bank: Bank, store: EvaluationStore, quiz: QuizSettings, capacity: Capacity) -> None:
        self._bank, self._store, self._quiz, self._capacity = bank, store, quiz, capacity
        self.slots = capacity.slots
        self._arrived: list[Guest] = []
        self._entering: list[Guest] = []
        """Within `advance`: those whose baselines are answered."""
        self._training: list[Guest] = []
        self._trained: list[Guest] = []
        self._crowded = False
        """Whether memory ran out, and nobody has left since."""
        self._quiz_patience_s = 0.0
        """As the last quiz took: who waits longer for others loses more than a quiz of its own would cost."""
        self.last_step_seconds: float | None = None
        self.trained_tokens = 0
        """Of all steps so far, whatever becomes of their evaluations."""

    @property
    def guests(self) -> list[Guest]:
        # Asked by other threads too, and who goes on to the next place is in both for a moment.
        return list(dict.fromkeys([*self._arrived, *self._entering, *self._training, *self._trained]))

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self.guests))

    def admit(self, guest: Guest) -> None:
        """Takes in an evaluation that has no rejection."""
        self._arrived.append(guest)

    def abandon(self) -> None:
        """Lets go of everybody, once an error came out of `advance`."""
        for place in (self._arrived, self._entering, self._training, self._trained):
            place.clear()

    def advance(self) -> list[Departure]:
        """One piece of work: baselines, else a step of all slots, else the quiz of those that are trained."""
        self.last_step_seconds = None
        gone = self._leave_if_stopped()
        self._let_in()
        if self._entering:
            try:
                return gone + self._answer_baselines(list(self._entering))
            finally:
                self._entering.clear()
        if self._training:
            gone += self._step()
        if self._quiz_is_due():
            gone += self._take_quizzes()
        if gone:
            self._crowded = False
        return gone

    def _leave_if_stopped(self) -> list[Departure]:
        gone: list[Departure] = []
        for place in (self._arrived, self._training, self._trained):
            for guest in [guest for guest in place if guest.stopped()]:
                place.remove(guest)
                gone.append((guest, Cancelled()))
        return gone

    def _let_in(self) -> None:
        """Those of the arrived that the memory has room for now; with nobody inside there is room for the first."""
        inside = [*self._training, *self._trained]
        if not self._arrived or (self._crowded and inside):
            return
        loads = [_load(guest) for guest in inside]
        if not self._capacity.fits(_load(self._arrived[0]), loads):
            # Versions that are kept only in case they are asked for again.
            self._capacity.let_go()
        while self._arrived and (not loads or self._capacity.fits(_load(self._arrived[0]), loads)):
            loads.append(_load(self._arrived[0]))
            self._entering.append(self._arrived[0])
            self._arrived.pop(0)

    def _answer_baselines(self, guests: list[Guest]) -> list[Departure]:
        """What is missing is answered for all in one quiz; then each gets its slot."""
        started = time.monotonic()
        missing: dict[Guest, dict[str, Sitting]] = {}
        gone: list[Departure] = []
        for guest in guests:
            try:
                missing[guest] = guest.evaluation.missing_baselines()
            except Exception as error:
                gone += self._give_up(error, [guest])
        guests = list(missing)
        asking = [guest for guest in guests if missing[guest]]
        try:
            faults = self._baseline_faults(asking, {key: each for own in missing.values() for key, each in own.items()})
        except Exception as error:
            gone += self._give_up(error, asking, lambda guest: _longest(missing[guest].values()))
            self._arrived[:0] = _staying(guests, gone)
            return gone
        _share_quiz(asking, time.monotonic() - started)
        for i, guest in enumerate(guests):
            own = [faults[key] for key in missing[guest] if key in faults]
            if own:
                gone.append(_failed(guest, own[0]))
                continue
            try:
                guest.slot = self._slot_of(guest)
            except Exception as error:
                gone += self._give_up(error, [guest])
                self._arrived[:0] = guests[i + 1 :]
                break
            self._training.append(guest)
        return gone

    def _baseline_faults(self, asking: Sequence[Guest], missing: dict[str, Sitting]) -> dict[str, Exception]:
        """Keeps the answers of the untouched student; why there are none, by the baseline's id."""
        faults: dict[str, Exception] = {}
        if not missing:
            return faults
        for guest in asking:
            guest.progress(EvaluationProgress(EvaluationPhase.BASELINE))
        for key, given in zip(missing, self._sit(list(missing.values()), asking), strict=True):
            if isinstance(given, Exception):
                faults[key] = given
            else:
                self._store.keep_baseline(key, QuizResult.of(given))
        return faults

    def _sit(self, sittings: Sequence[Sitting], guests: Sequence[Guest]) -> list[Graded]:
        rooms = [[sitting] for sitting in sittings] if self._quiz.apart else [list(sittings)]
        given = [
            each
            for room in rooms
            for each in answered(
                self._bank,
                room,
                max_new_tokens=self._quiz.max_new_tokens,
                batch_size=self._quiz.batch_size,
                stop=lambda: all(guest.stopped() for guest in guests),
            )
        ]
        return [_graded(sitting, *each) for sitting, each in zip(sittings, given, strict=True)]

    def _slot_of(self, guest: Guest) -> Slot:
        evaluation = guest.evaluation
        # Not through the guest, who holds the slot: rings of tensors wait for the garbage collector.
        report = guest.progress

        def progress(done: int, total: int, loss: float) -> None:
            report(EvaluationProgress(EvaluationPhase.TRAINING, done, total, loss))

        return Slot(
            self._bank,
            evaluation.rows,
            evaluation.effective.settings,
            evaluation.key.seed,
            parent=evaluation.parent,
            progress=progress,
        )

    def _step(self) -> list[Departure]:
        started = time.monotonic()
        guests = {guest.slot: guest for guest in self._training if guest.slot is not None}
        tokens = {slot: _step_tokens(guest) for slot, guest in guests.items()}
        gone: list[Departure] = []
        try:
            for slot, rejection in step(self._bank, list(guests), self._capacity.limits):
                guest = guests[slot]
                self.trained_tokens += tokens[slot]
                if rejection is not None:
                    gone.append((guest, Ended(rejection)))
                elif slot.finished:
                    slot.release()
                    guest.trained_at = time.monotonic()
                    done = slot.trained()
                    guest.progress(EvaluationProgress(EvaluationPhase.QUIZ, done.steps, done.steps, done.last_loss))
                    self._trained.append(guest)
        except StepFailed as failed:
            gone += self._give_up(failed.error, [guests[slot] for slot in failed.slots], _step_tokens)
        left = {id(guest) for guest, _ in gone} | {id(guest) for guest in self._trained}
        self._training = [guest for guest in self._training if id(guest) not in left]
        self.last_step_seconds = time.monotonic() - started
        for slot, own in tokens.items():
            slot.seconds += self.last_step_seconds * own / sum(tokens.values())
        return gone

    def _give_up(
        self, error: Exception, guests: Sequence[Guest], size: Callable[[Guest], int] = lambda guest: 0
    ) -> list[Departure]:
        """Out of memory the largest ends, of equals the last to come; any other fault ends all whose work it was.

        Memory that ran out beside others costs one slot as well. Who is alone is too large itself, at any number.
        """
        fault = self._fault(error)
        if not is_out_of_memory(error):
            return [(guest, fault) for guest in guests]
        largest = max(reversed(guests), key=size)
        if len({*guests, *self._training, *self._trained}) > 1:
            self.slots = max(1, self.slots - 1)
        self._crowded = True
        told = "out of memory in the work on %d evaluations, of which the largest ends; %d slots from now on"
        largest.context.run(log.warning, told, len(guests), self.slots)
        return [(largest, fault)]

    def _quiz_is_due(self) -> bool:
        if not self._trained:
            return False
        waited = time.monotonic() - min(guest.trained_at for guest in self._trained)
        inside = len(self._training) + len(self._trained)
        return not self._training or 2 * len(self._trained) >= inside or waited > self._quiz_patience_s

    def _take_quizzes(self) -> list[Departure]:
        guests = list(self._trained)
        started = time.monotonic()
        sittings = {guest: guest.evaluation.final_sittings(_slot(guest).adapters) for guest in guests}
        try:
            answers = self._sit([each for own in sittings.values() for each in own], guests)
        except Exception as error:
            gone = self._give_up(error, guests, lambda guest: _longest(sittings[guest]))
        else:
            took = time.monotonic() - started
            self._quiz_patience_s = min(QUIZ_PATIENCE_S, took)
            _share_quiz(guests, took)
            gone = []
            for i, guest in enumerate(guests):
                if guest.stopped():
                    # Its neighbours were not: the quiz went on, and nothing of it is to be stored for this one.
                    gone.append((guest, Cancelled()))
                    continue
                try:
                    gone.append(_quizzed(guest, answers[2 * i : 2 * i + 2]))
                except Exception as error:
                    gone += self._give_up(error, [guest])
        self._trained = _staying(guests, gone)
        return gone

    def _fault(self, error: Exception) -> Exception:
        if not is_out_of_memory(error):
            return error
        # The error's traceback holds the tensors of the failed pass.
        error.__traceback__ = None
        self._capacity.let_go()
        free_cached()
        return out_of_memory()


def _graded(sitting: Sitting, texts: Sequence[str], logliks: Sequence[float | None]) -> Graded:
    try:
        return graded(sitting, texts, logliks)
    except TutelageError as error:
        return error


def _quizzed(guest: Guest, given: Sequence[Graded]) -> Departure:
    faults = [each for each in given if isinstance(each, TutelageError)]
    if faults:
        return _failed(guest, faults[0])
    results = [each for each in given if not isinstance(each, TutelageError)]
    slot = _slot(guest)
    return guest, guest.evaluation.ended(slot.trained(), slot.adapter.weights(), results)


def _failed(guest: Guest, fault: Exception) -> Departure:
    """What a grader does wrong it would do wrong again; any other fault is the scheduler's to judge."""
    if not isinstance(fault, GraderFailed):
        return guest, fault
    guest.context.run(log.error, "evaluation %s failed", guest.evaluation.key.id, exc_info=fault)
    return guest, Failure(str(fault), retryable=False)


def _staying(guests: Sequence[Guest], gone: Sequence[Departure]) -> list[Guest]:
    left = [guest for guest, _ in gone]
    return [guest for guest in guests if guest not in left]


def _share_quiz(guests: Sequence[Guest], seconds: float) -> None:
    """Counts the time of a quiz once, however many take it together."""
    for guest in guests:
        guest.evaluation.quiz_seconds += seconds / len(guests)


def _longest(sittings: Iterable[Sitting]) -> int:
    """Characters of the longest question with its answer: by it the rows of a batch are padded."""
    questions = [question for sitting in sittings for question in sitting.questions]
    return max((len(asked(question)) + len(question.answer) for question in questions), default=0)


def _step_tokens(guest: Guest) -> int:
    slot = _slot(guest)
    # One whose last step went wrong at its very end has no next one.
    return 0 if slot.finished else sum(len(row.ids) for row in slot.batch)


def _load(guest: Guest) -> Load:
    evaluation = guest.evaluation
    return Load(evaluation.effective.settings, evaluation.rows, evaluation.parent)


def _slot(guest: Guest) -> Slot:
    assert guest.slot is not None
    return guest.slot
