"""One evaluation from its key to its stored outcome: asked for by id, so asking again attaches."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from orchestrator import metrics
from orchestrator.database import now_us
from orchestrator.dispatch_decisions import Again, Limits
from orchestrator.dispatcher import Dispatcher, Work
from orchestrator.evaluation_entries import Begun, Ended, TriedAgain, state_of
from orchestrator.judge_panel import Judged, JudgePanel
from orchestrator.judging import Judges
from orchestrator.ledger import Ledger
from orchestrator.records import Pending, Run, StoredEvaluation
from orchestrator.run_events import Evaluate
from orchestrator.store import Store
from tutelage.client import StudentClient
from tutelage.domain.description import EvaluationProgress
from tutelage.domain.errors import TutelageError
from tutelage.domain.evaluation import EvaluationKey, EvaluationOutcome, EvaluationReport, Failure
from tutelage.domain.reward import Reward, Unscored, scored
from tutelage.domain.self_edit import Rejection
from tutelage.grading import answer_overlap


def reward_or_why(
    run: Run, outcome: EvaluationOutcome, missing: Mapping[str, str] = MappingProxyType({})
) -> Reward | Unscored | None:
    """What an outcome earns, or why a report earns nothing; what was rejected or failed may earn nothing by itself.

    `missing` are the judges that did not grade it, and why.
    """
    if isinstance(outcome, Rejection):
        earned = run.config.reward.rejected_reward
        return None if earned is None else Reward(earned, {})
    if isinstance(outcome, Failure):
        return None
    lacking = [why for name, why in missing.items() if name in run.config.needed_judges()]
    return Unscored("; ".join(dict.fromkeys(lacking))) if lacking else scored(outcome, run.config.reward_settings())


class Asked:
    """An evaluation under way, for those who want to look at it or end it."""

    def __init__(self, work: Evaluate, evaluation_id: str, given: Work) -> None:
        self.work, self.evaluation_id, self.given = work, evaluation_id, given
        self.running = False
        """Whether a student has it now."""
        self.judging: asyncio.Timeout | None = None
        """The judges' time, while they have its report."""
        self.not_needed = ""
        """Why judges need not end it."""

    def give_up_judging(self, reason: str) -> None:
        """Stores the report of what a student is done with as it is, without the judges that have not ended."""
        if self.judging is not None and not self.not_needed:
            self.not_needed = reason
            self.judging.reschedule(asyncio.get_running_loop().time())


@dataclass(frozen=True)
class Watching:
    """Who is told of an evaluation's way."""

    asked: Callable[[Asked], None] = lambda _: None
    started: Callable[[Asked], None] = lambda _: None
    stopped: Callable[[Asked], None] = lambda _: None
    failed: Callable[[Asked], None] = lambda _: None
    """An attempt failed and will be made again."""
    answered: Callable[[Asked], None] = lambda _: None
    """Its student is done with it; what is left, judges and the database do."""


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

    @property
    def panel(self) -> JudgePanel:
        """The run's judges."""
        return JudgePanel(self.judges, self.run.config, self.dispatcher.retry, self.paused)

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
        if age_s is not None:
            seconds = age_s + time.monotonic() - asked_at
        else:
            seconds = time.monotonic() - began[0] if began else 0.0
        watching.answered(asked)

        async def unjudged(error: TutelageError, _: int, wait_s: float) -> None:
            given.attempts += 1
            again(Again(given, given.attempts, wait_s, str(error)))

        missing: Mapping[str, str] = {}
        if isinstance(outcome, EvaluationReport):
            # A student is not told what of an edit its writer was given.
            overlap = answer_overlap(key.self_edit, key.quiz, self.run.tasks[work.task].task)
            outcome = replace(outcome, answer_overlap=overlap)
            metrics.ANSWER_OVERLAP.observe(overlap)
            judged = await self._judged(asked, outcome, key, unjudged)
            outcome, missing = judged.report, judged.missing
        found = reward_or_why(self.run, outcome, missing)
        reward, unscored = (None, found.reason) if isinstance(found, Unscored) else (found, "")
        return await self._keep(
            Ended(begun, outcome, reward, seconds, given.attempts, candidate_ids, replica, unscored)
        )

    async def _judged(
        self,
        asked: Asked,
        report: EvaluationReport,
        key: EvaluationKey,
        again: Callable[[TutelageError, int, float], Awaitable[None]],
    ) -> Judged:
        needed, judged = self.run.config.needed_judges(), Judged(report)
        try:
            async with asyncio.timeout(None) as asked.judging:
                await self.panel.judge(judged, key.quiz, needed, again)
        except TimeoutError:
            if not asked.not_needed:
                raise
            judged.given_up(needed, asked.not_needed)
        finally:
            asked.judging = None
        return judged

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
    state, reason = state_of(ended)
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
