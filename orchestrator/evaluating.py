"""One evaluation from its key to its stored outcome: asked for by id, so asking again attaches."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator import metrics
from orchestrator.database import now_us
from orchestrator.dispatch_decisions import Again, Limits
from orchestrator.dispatcher import Dispatcher, Work
from orchestrator.evaluation_entries import Begun, Ended, TriedAgain, state_of
from orchestrator.judging import Judges
from orchestrator.ledger import Ledger
from orchestrator.records import Pending, Run, StoredEvaluation
from orchestrator.retrying import patiently
from orchestrator.run_events import Evaluate
from orchestrator.store import Store
from tutelage.client import StudentClient
from tutelage.domain.description import EvaluationProgress
from tutelage.domain.errors import TutelageError
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, Failure
from tutelage.domain.reward import Reward, RewardSettings, parts_of, value_of
from tutelage.domain.self_edit import Rejection


def scored(run: Run, outcome: EvaluationOutcome) -> tuple[EvaluationOutcome, Reward | None]:
    """The reward of an outcome; a report that cannot be scored is a failure, and a failure has none."""
    if isinstance(outcome, Rejection):
        earned = run.config.reward.rejected_reward
        return outcome, None if earned is None else Reward(earned, {})
    if isinstance(outcome, Failure):
        return outcome, None
    settings = run.config.reward_settings()
    try:
        parts = parts_of(outcome, settings)
        reward = Reward(value_of(parts, replace(settings, formula="")), parts)
    except KeyError as error:
        return Failure(f"the report has no score by grader {error}", retryable=False), None
    if not math.isfinite(reward.value):
        return Failure("the report's scores are not finite numbers", retryable=False), None
    return (outcome, reward) if not settings.formula else _by_formula(outcome, reward.parts, settings)


def _by_formula(
    report: EvaluationReport, parts: Mapping[str, float], settings: RewardSettings
) -> tuple[EvaluationOutcome, Reward | None]:
    """What the formula of a package makes of the parts; whatever goes wrong in it is a failure."""
    failed = f"the formula {settings.formula!r} gives no reward:"
    try:
        value = value_of(dict(parts), settings)
    except Exception as error:
        return Failure(f"{failed} {type(error).__name__}: {error}", retryable=False), None
    if not math.isfinite(value):
        return Failure(f"{failed} {value} is not a finite number", retryable=False), None
    return report, Reward(value, dict(parts))


class Asked:
    """An evaluation under way, for those who want to look at it or end it."""

    def __init__(self, work: Evaluate, evaluation_id: str, given: Work) -> None:
        self.work, self.evaluation_id, self.given = work, evaluation_id, given
        self.running = False
        """Whether a student has it now."""


@dataclass(frozen=True)
class Watching:
    """Who is told of an evaluation's way."""

    asked: Callable[[Asked], None] = lambda _: None
    started: Callable[[Asked], None] = lambda _: None
    stopped: Callable[[Asked], None] = lambda _: None
    failed: Callable[[Asked], None] = lambda _: None
    """An attempt failed and will be made again."""


@dataclass(frozen=True)
class Evaluator:
    """Runs evaluations of one run on its students and stores how they ended."""

    run: Run
    store: Store
    dispatcher: Dispatcher
    ledger: Ledger
    lease_s: float
    judges: Judges
    paused: asyncio.Event
    """Set once nothing is to be tried again."""

    @property
    def limits(self) -> Limits:
        """How long and how often an evaluation of this run is tried."""
        deadlines = self.run.config.deadlines
        return Limits(deadlines.attempts, deadlines.evaluation_s, deadlines.total_s)

    async def evaluate(
        self,
        work: Evaluate,
        key: EvaluationKey,
        phase: str,
        candidate_ids: Sequence[str],
        *,
        evaluation_id: str = "",
        known: Mapping[tuple[str, str], Pending] | None = None,
        watching: Watching | None = None,
    ) -> StoredEvaluation:
        """The stored, final evaluation. Cancelling detaches: the student goes on for its lease.

        `evaluation_id` is the key's, where it is known. `known` tells of what was begun before a restart and has not
        ended, by (evaluation, student); None: the store is to be asked, also whether it has ended.
        """
        run_id, watching = self.run.run_id, watching or Watching()
        evaluation_id = evaluation_id or key.id
        if known is not None:
            before = known.get((evaluation_id, work.student), Pending())
        else:
            rows = await self.store.evaluations(run_id, evaluation_id=evaluation_id, student=work.student)
            if rows and rows[0].final:
                return rows[0]
            before = Pending(rows[0].attempts, rows[0].started_us) if rows else Pending()
        age_s = max(0.0, (now_us() - before.started_us) / 1e6) if before.started_us else None
        asked_at = time.monotonic()
        begun = Begun(evaluation_id, work, phase, key.adapter_version, now_us())
        began: list[float] = []

        async def call(client: StudentClient, timeout_s: float) -> EvaluationOutcome:
            return await self._asked(client, key, evaluation_id, timeout_s)

        def started() -> None:
            if not began:
                began.append(time.monotonic())
                self.ledger.note(begun)
            asked.running = True
            watching.started(asked)

        def stopped() -> None:
            asked.running = False
            watching.stopped(asked)

        def again(failed: Again) -> None:
            self.ledger.note(TriedAgain(evaluation_id, work.student, self._retry_detail(evaluation_id, work, failed)))
            watching.failed(asked)

        given = Work(
            work.student,
            call,
            self.limits,
            run_id,
            (work.round,),
            before.attempts,
            age_s,
            started=started,
            stopped=stopped,
            again=again,
            evaluation_id=evaluation_id,
        )
        asked = Asked(work, evaluation_id, given)
        watching.asked(asked)
        outcome, replica = await self.dispatcher.run(given)

        async def unjudged(error: TutelageError, _: int, wait_s: float) -> None:
            given.attempts += 1
            again(Again(given, given.attempts, wait_s, str(error)))

        outcome, reward = scored(self.run, await self._judged(outcome, key, unjudged))
        if age_s is not None:
            seconds = age_s + time.monotonic() - asked_at
        else:
            seconds = time.monotonic() - began[0] if began else 0.0
        return await self._keep(Ended(begun, outcome, reward, seconds, given.attempts, candidate_ids, replica))

    async def _judged(
        self,
        outcome: EvaluationOutcome,
        key: EvaluationKey,
        again: Callable[[TutelageError, int, float], Awaitable[None]],
    ) -> EvaluationOutcome:
        """A report with the judges' scores; a judge that fails is asked again, and at last nobody's wrong answer."""
        if not isinstance(outcome, EvaluationReport):
            return outcome
        metrics.ANSWER_OVERLAP.observe(outcome.answer_overlap)
        deadlines, judges = self.run.config.deadlines, self.run.config.judges
        try:
            return await patiently(
                lambda: self.judges.judged(outcome, key.quiz, judges),
                "judge",
                self.dispatcher.retry,
                attempts=deadlines.attempts,
                total_s=deadlines.total_s,
                paused=self.paused,
                told=again,
            )
        except TutelageError as error:
            return Failure(str(error), retryable=False)

    async def give_up(
        self,
        work: Evaluate,
        evaluation_id: str,
        adapter_version: str,
        candidate_ids: Sequence[str],
        reason: str,
        attempts: int = 0,
    ) -> StoredEvaluation:
        """Ends an evaluation of a round that no student has, as unscored; `attempts` were made before a restart."""
        begun = Begun(evaluation_id, work, "round", adapter_version, now_us())
        return await self._keep(Ended(begun, Failure(reason, retryable=False), None, 0.0, attempts, candidate_ids, ""))

    async def _keep(self, ended: Ended) -> StoredEvaluation:
        begun = ended.begun
        if not await self.ledger.end(ended):
            # It had ended before: what was stored first stands.
            rows = await self.store.evaluations(
                self.run.run_id, evaluation_id=begun.evaluation_id, student=begun.work.student
            )
            return rows[0]
        stored = _stored(ended)
        metrics.EVALUATIONS.labels(stored.state).inc()
        metrics.EVALUATION_SECONDS.labels(stored.state).observe(ended.seconds)
        if stored.reward is not None:
            metrics.REWARD.observe(stored.reward)
        if stored.state == "report":
            metrics.LAST_SUCCESS.set_to_current_time()
        return stored

    async def _asked(
        self, client: StudentClient, key: EvaluationKey, evaluation_id: str, timeout_s: float
    ) -> EvaluationOutcome:
        ended: EvaluationOutcome | None = None
        stream = client.evaluate(key, lease_s=self.lease_s, run_id=self.run.run_id, timeout_s=timeout_s)
        async for event in stream:
            if not isinstance(event, EvaluationProgress):
                ended = event
        if ended is None:
            raise TutelageError("it ended the stream without an outcome")
        if isinstance(ended, EvaluationReport) and ended.evaluation_id != evaluation_id:
            return Failure(f"{client.address} reported evaluation {ended.evaluation_id!r}", retryable=False)
        if isinstance(ended, EvaluationReport) and (wrong := _other_answers(ended, key)):
            return Failure(f"{client.address} reported {wrong}", retryable=False)
        return ended

    def _retry_detail(self, evaluation_id: str, work: Evaluate, failed: Again) -> dict[str, object]:
        return {
            "evaluation": evaluation_id,
            "student": work.student,
            "task": work.task,
            "round": work.round,
            "attempt": failed.attempts,
            "of": self.run.config.deadlines.attempts,
            "wait_s": failed.wait_s,
            "reason": failed.reason,
        }


def _other_answers(report: EvaluationReport, key: EvaluationKey) -> str:
    """What answers there are that were not asked for, or none to what was; empty where all is well."""
    for name, result, quiz in (
        ("before", report.before, key.quiz),
        ("after", report.after, key.quiz),
        ("before, of the retention quiz,", report.retention_before, key.retention_quiz),
        ("after, of the retention quiz,", report.retention_after, key.retention_quiz),
    ):
        given, asked = Counter(answer.question_id for answer in result.answers), Counter(q.id for q in quiz.questions)
        if given != asked:
            other, missing = sorted((given - asked).elements()), sorted((asked - given).elements())
            return f"answers {name} to {other[:3]}, which were not asked, and none to {missing[:3]}"
    return ""


def _stored(ended: Ended) -> StoredEvaluation:
    begun, work = ended.begun, ended.begun.work
    state, reason = state_of(ended.outcome)
    return StoredEvaluation(
        evaluation_id=begun.evaluation_id,
        student=work.student,
        phase=begun.phase,
        round=work.round,
        task_id=work.task,
        edit=work.edit,
        repeat=work.repeat,
        adapter_version=begun.adapter_version,
        state=state,
        attempts=ended.attempts,
        reason=reason,
        outcome=ended.outcome,
        reward=None if ended.reward is None else ended.reward.value,
        parts=ended.reward.parts if ended.reward else {},
        seconds=ended.seconds,
        replica=ended.replica,
    )
