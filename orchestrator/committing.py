"""Making one task's best edit permanent in one student: gate, keep the weights, move the student's version.

A fault never decides: a student that is away is waited for as long as for an evaluation, weights that are lost are
trained again, and what cannot be had after all is recorded as a fault, so that it may be decided another time.

Safe to stop anywhere: committing an evaluation twice gives the same version, and the version moves in the same
transaction as the decision is recorded, only from the version that the edit was trained over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator import metrics
from orchestrator.commit_gate import TRIES, Tried, best, refusal, refusal_as_stored
from orchestrator.config import OrchestratorSettings
from orchestrator.evaluating import Evaluator, Watching
from orchestrator.evaluation_keys import evaluation_key
from orchestrator.judge_panel import Judged
from orchestrator.records import StoredCandidate, StoredEvaluation
from orchestrator.retrying import patiently
from orchestrator.run_events import Commit, Evaluate
from orchestrator.student_rows import StudentRows
from tutelage.client.student import Committed
from tutelage.domain.canonical import derived_seed
from tutelage.domain.errors import (
    Conflict,
    DataLoss,
    Exhausted,
    NotFound,
    PreconditionFailed,
    TutelageError,
    Unavailable,
)
from tutelage.domain.evaluation import EvaluationReport, QuizResult
from tutelage.domain.self_edit import SelfEdit

LOST = (PreconditionFailed, NotFound, DataLoss)
"""Who says this has not the weights, or not whole."""


@dataclass(frozen=True)
class Committer:
    evaluator: Evaluator
    rows: StudentRows
    settings: OrchestratorSettings

    async def commit(
        self,
        step: Commit,
        evaluations: Sequence[StoredEvaluation],
        candidates: Mapping[str, StoredCandidate],
        watching: Watching | None = None,
    ) -> None:
        """Records the decision on one (student, task), whose evaluations these are.

        `watching` is told of what is evaluated for it.
        """
        config = self.evaluator.run.config
        chosen = best(_tried(step, evaluations, candidates), config)
        if chosen is None:
            failed = any(row.phase == "round" and row.state == "failed" for row in evaluations)
            return await self._record(step, None, "no evaluation of it was scored", fault=failed)
        why_not = refusal(chosen.report, config)
        if why_not:
            return await self._record(step, chosen, why_not)
        held = True
        for attempt in range(1, TRIES + 1):
            current = (await self.rows.current(step.student)).version
            if not held or chosen.adapter_version != current:
                again = await self._evaluate_over(step, chosen, candidates, current, attempt, watching)
                report = again.outcome
                if again.state != "report" or not isinstance(report, EvaluationReport):
                    why_not = f"evaluated again: {again.state}, {again.reason}"
                    return await self._record(step, chosen, why_not, fault=again.state == "failed")
                chosen = replace(
                    chosen,
                    evaluation_id=again.evaluation_id,
                    adapter_version=current,
                    report=report,
                    replica=again.replica,
                )
                held = True
                why_not = refusal(report, config)
                if why_not:
                    return await self._record(step, chosen, f"over the current version: {why_not}")
            try:
                version, quiz, retention = await self._keep(step, chosen)
            except LOST:
                # Its weights are no longer held: train again, under another seed, since a stored report is final.
                held = False
                continue
            except TutelageError as error:
                return await self._record(step, chosen, f"the student could not keep it: {error}", fault=True)
            why_not = refusal_as_stored(chosen.report, quiz, retention, config)
            if why_not:
                return await self._record(step, chosen, why_not)
            try:
                return await self._record(step, chosen, "", version, quiz, retention)
            except Conflict:
                continue
        why_not = f"the version moved or the weights were lost {TRIES} times"
        return await self._record(step, chosen, why_not, fault=True)

    async def _keep(self, step: Commit, chosen: Tried) -> tuple[str, QuizResult, QuizResult]:
        """The version, and the quiz and the retention quiz as it answers them.

        Asks the replica that earned the report, then the others: only who has the weights can keep them.

        One of LOST when nobody has them. Who is away is waited for: to the total deadline while nobody answers, and
        for as many attempts as an evaluation has while others do, which can train them again.
        """
        students, student = self.evaluator.dispatcher.students, step.student
        deadlines, commit_s = self.evaluator.run.config.deadlines, self.settings.commit_timeout_s
        waited = 0

        async def call() -> Committed:
            nonlocal waited
            lacking: dict[str, TutelageError] = {}
            away: TutelageError | None = None
            for address in sorted(await students.addresses(student), key=lambda each: each != chosen.replica):
                try:
                    return await students.replica(student, address).commit(chosen.evaluation_id, timeout_s=commit_s)
                except LOST as error:
                    lacking[address] = error
                except (Unavailable, Exhausted) as error:
                    away = error
            waited += bool(lacking)
            if lacking and (away is None or chosen.replica in lacking or waited >= deadlines.attempts):
                raise next(iter(lacking.values()))
            raise away or Unavailable(f"student {student!r} has no replica")

        adapter, stored, retention = await patiently(
            call,
            "student",
            self.settings.retry,
            total_s=deadlines.total_s,
            faults=deadlines.attempts,
            paused=self.evaluator.paused,
        )
        return adapter.version, await self._judged(step.task, chosen, stored), retention

    async def _judged(self, task: str, chosen: Tried, stored: QuizResult) -> QuizResult:
        """What the stored version answered, with the judges' scores; Unavailable without those of the gate's."""
        run = self.evaluator.run
        if not run.config.judges or not stored.answers:
            return stored
        judged = Judged(replace(chosen.report, before=QuizResult(), after=stored))
        gate = run.config.commit.grader
        await self.evaluator.panel.judge(judged, run.tasks[task].quiz, {gate})
        if gate in judged.missing:
            raise Unavailable(judged.missing[gate])
        return judged.report.after

    async def _evaluate_over(
        self,
        step: Commit,
        chosen: Tried,
        candidates: Mapping[str, StoredCandidate],
        current: str,
        attempt: int,
        watching: Watching | None,
    ) -> StoredEvaluation:
        run = self.evaluator.run
        stored = candidates[chosen.candidate_id]
        if not isinstance(stored.candidate.result, SelfEdit) or stored.edit is None:
            raise ValueError(f"candidate {chosen.candidate_id} was rejected")
        work = Evaluate(stored.round, step.task, stored.edit, step.student, 0)
        # Rounds that were added: what was trained for the commit before them is stored for good, and its weights gone.
        added = [run.extra_rounds] if run.extra_rounds else []
        seed = derived_seed(run.config.seed, "commit", step.task, attempt, *added)
        key = evaluation_key(run, work, stored.candidate.result, current, seed)
        return await self.evaluator.evaluate(work, key, "commit", (), watching=watching)

    async def _record(
        self,
        step: Commit,
        chosen: Tried | None,
        reason: str,
        version: str = "",
        quiz: QuizResult | None = None,
        retention: QuizResult | None = None,
        *,
        fault: bool = False,
    ) -> None:
        committed = bool(version)
        report = chosen.report if chosen else None
        before = report.before if report else QuizResult()
        after = quiz if quiz is not None and quiz.answers else report.after if report else QuizResult()
        row = {
            "student": step.student,
            "task_id": step.task,
            "candidate_id": chosen.candidate_id if chosen else "",
            "evaluation_id": chosen.evaluation_id if chosen else "",
            "committed": committed,
            "fault": fault,
            "reason": reason,
            "version": version,
            "parent_version": chosen.adapter_version if chosen else "",
            "quiz_before": before,
            "quiz_after": after,
            "retention_after": retention or QuizResult(),
        }
        detail = {name: value for name, value in row.items() if not isinstance(value, QuizResult)}
        detail |= {"before": before.scores, "after": after.scores}
        await self.evaluator.store.add_commit(self.evaluator.run.run_id, row, detail)
        metrics.COMMITS.labels("committed" if committed else "not_committed").inc()


def _tried(
    step: Commit, evaluations: Sequence[StoredEvaluation], candidates: Mapping[str, StoredCandidate]
) -> list[Tried]:
    """The scored evaluations of a task on a student, each under the first candidate with that edit."""
    first: dict[tuple[int, str], str] = {}
    for stored in candidates.values():
        if stored.task_id == step.task and stored.edit is not None:
            first.setdefault((stored.round, stored.edit), stored.id)
    return [
        Tried(first[(row.round, row.edit)], row.evaluation_id, row.adapter_version, row.outcome, row.replica)
        for row in evaluations
        if (row.student, row.task_id, row.phase) == (step.student, step.task, "round")
        and row.state == "report"
        and isinstance(row.outcome, EvaluationReport)
    ]
