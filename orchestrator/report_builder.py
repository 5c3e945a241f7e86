"""A run's report from the store's rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import yaml

from orchestrator.evaluation_keys import round_seed
from orchestrator.group_rewards import task_rewards
from orchestrator.rebuilding import rebuild
from orchestrator.records import Run, StoredCandidate, StoredEvaluation
from orchestrator.report.answers import MOST, to_show, with_answers, without_answers, without_quizzes
from orchestrator.report.data import (
    CandidateRecord,
    CommitRecord,
    EvaluationRecord,
    ReportHeader,
    RoundUpdate,
    RunReport,
)
from orchestrator.report.phases import phase_times
from orchestrator.run_events import Evaluate
from orchestrator.store import Store
from tutelage import __version__
from tutelage.domain.evaluation import EvaluationReport, InnerLoopSettings
from tutelage.domain.policy import UpdateResult
from tutelage.domain.run import RunEvent, RunSummary
from tutelage.domain.self_edit import Rejection, SelfEdit, TextDocument, TrainingDocument
from tutelage.domain.task import DocumentTask

LATEST_EVENTS = 2000
"""Events that a report holds in any case."""
EVENTS_AT_ONCE = 2000


def document_text(document: TrainingDocument) -> str:
    """A training document as a reader sees it."""
    if isinstance(document, TextDocument):
        return document.text
    return "\n".join(f"{message.role.value}: {message.content}" for message in document.messages)


async def build_report(store: Store, run: Run, summary: RunSummary, answers_up_to: int = MOST) -> RunReport:
    """What the store knows of a run; of a running one, what there is so far.

    Everything, but for a run of more evaluations than `answers_up_to`: of those, see `report.answers`.
    """
    everything = await store.count_evaluations(run.run_id) <= answers_up_to
    report = await _report(store, run, summary, everything)
    if everything:
        return report
    whole = {}
    for shown in to_show(report):
        (row,) = await store.evaluations(run.run_id, evaluation_id=shown.evaluation_id, student=shown.student)
        if isinstance(row.outcome, EvaluationReport):
            whole[row.student, row.evaluation_id] = row.outcome
    return with_answers(report, whole)


async def _report(store: Store, run: Run, summary: RunSummary, everything: bool) -> RunReport:
    candidates = await store.candidates(run.run_id)
    evaluations = await store.evaluations(run.run_id, kept=_whole if everything else _Lean())
    machine = await rebuild(run, store)
    settings = run.config.reward_settings()
    rewards = {
        (round_, task): each
        for round_ in {group.round for group in machine.groups}
        if round_ < machine.round  # until a round is complete, its means may still change
        for task, each in task_rewards(machine, round_, settings).items()
    }
    by_candidate: dict[tuple[str, str, int], StoredEvaluation] = {
        (row.student, row.evaluation_id, row.repeat): row for row in evaluations
    }
    given: dict[str, list[EvaluationRecord]] = {}
    for candidate_id, student, repeat, evaluation_id in await store.reward_rows(run.run_id):
        row = by_candidate.get((student, evaluation_id, repeat))
        if row is not None:
            given.setdefault(candidate_id, []).append(_evaluation(run, row, candidate_id))
    for row in evaluations:
        if row.phase == "commit" and row.final:
            owner = next(
                (c.id for c in candidates if (c.round, c.task_id, c.edit) == (row.round, row.task_id, row.edit)), ""
            )
            given.setdefault(owner, []).append(_evaluation(run, row, owner))
    updates = {item.round: item.result for item in await store.updates(run.run_id)}
    events, left_out = await _events(store, run.run_id, everything)
    commits = tuple(
        CommitRecord(**{name: value for name, value in row.items() if name != "run_id"})
        for row in await store.commits(run.run_id)
    )
    return RunReport(
        header=_header(run, summary),
        candidates=tuple(
            _candidate(
                run, item, rewards.get((item.round, item.task_id)), given.get(item.id, ()), updates.get(item.round)
            )
            for item in candidates
        ),
        updates=tuple(RoundUpdate(number, result) for number, result in updates.items()),
        commits=commits if everything else tuple(without_quizzes(commit) for commit in commits),
        phases=phase_times(events),
        events=tuple(events),
        all_answers=everything,
        events_left_out=left_out,
    )


def _whole(row: StoredEvaluation) -> StoredEvaluation:
    return row


class _Lean:
    """Drops the answers of evaluations, and keeps what they have in common once."""

    def __init__(self) -> None:
        self._settings: dict[InnerLoopSettings, InnerLoopSettings] = {}
        self._texts: dict[str, str] = {}

    def __call__(self, row: StoredEvaluation) -> StoredEvaluation:
        outcome = row.outcome
        if isinstance(outcome, EvaluationReport):
            used = outcome.effective_settings
            outcome = replace(without_answers(outcome), effective_settings=self._settings.setdefault(used, used))
        return replace(
            row,
            outcome=outcome,
            student=self._once(row.student),
            task_id=self._once(row.task_id),
            edit=self._once(row.edit),
            adapter_version=self._once(row.adapter_version),
            reason=self._once(row.reason),
            replica=self._once(row.replica),
        )

    def _once(self, text: str) -> str:
        return self._texts.setdefault(text, text)


async def _events(store: Store, run_id: str, everything: bool) -> tuple[list[RunEvent], int]:
    """A run's events in order, and how many are left out."""
    if everything:
        return await store.events(run_id), 0
    kept: dict[int, RunEvent] = {}
    latest: deque[RunEvent] = deque(maxlen=LATEST_EVENTS)
    ended: dict[object, RunEvent] = {}
    after = count = 0
    while piece := await store.events(run_id, after, limit=EVENTS_AT_ONCE):
        after, count = piece[-1].sequence, count + len(piece)
        latest.extend(piece)
        for event in piece:
            if event.kind == "evaluation_done":
                # A round's last one tells when it was evaluated.
                ended[event.detail.get("round"), event.detail.get("phase")] = event
            elif event.kind not in ("evaluation_started", "update_progress"):
                kept[event.sequence] = event
    kept |= {event.sequence: event for event in (*latest, *ended.values())}
    return [kept[sequence] for sequence in sorted(kept)], count - len(kept)


def _header(run: Run, summary: RunSummary) -> ReportHeader:
    versions = {
        "orchestrator": __version__,
        "teacher": run.teacher.version,
        "teacher model": f"{run.teacher.base_model} {run.teacher.base_revision[:12]}",
    }
    for name, student in run.students.items():
        described = student.description
        versions[f"student {name}"] = described.version
        versions[f"student {name} model"] = (
            f"{described.base_model} {described.base_revision[:12]} {described.quantisation}"
        )
        versions[f"student {name} engine"] = described.engine_revision
        versions[f"student {name} adapter at start"] = student.adapter_version or "base model"
    resolved = yaml.safe_dump(run.config.model_dump(mode="json"), sort_keys=False)
    tasks = tuple(run.tasks.values())
    return ReportHeader(summary, run.config_yaml, versions, tasks, run.retention_quiz, resolved, run.content_hash)


def _candidate(
    run: Run,
    item: StoredCandidate,
    rewards: tuple[float | None, ...] | None,
    evaluations: Sequence[EvaluationRecord],
    update: UpdateResult | None,
) -> CandidateRecord:
    written = item.candidate
    content = run.tasks[item.task_id].task.content
    scored = [record.reward for record in evaluations if record.reward is not None and record.phase == "round"]
    running_mean = sum(scored) / len(scored) if scored else None
    return CandidateRecord(
        id=item.id,
        round=item.round,
        task_id=item.task_id,
        task_title=content.title if isinstance(content, DocumentTask) else content.instruction[:80],
        index=written.index,
        format=written.format,
        policy_version=written.policy_version,
        text=written.text,
        documents=tuple(document_text(document) for document in written.result.documents)
        if isinstance(written.result, SelfEdit)
        else (),
        rejection=written.result if isinstance(written.result, Rejection) else None,
        reward=rewards[written.index] if rewards is not None else running_mean,
        evaluations=tuple(sorted(evaluations, key=lambda record: (record.phase, record.student, record.repeat))),
        chosen=_chosen(run, item, update),
        seed=written.seed,
        completion_tokens=written.completion_tokens,
    )


def _chosen(run: Run, item: StoredCandidate, update: UpdateResult | None) -> bool | None:
    """Whether the round's update made it more probable; None where that is not known, or not yet."""
    if update is None or (update.kept_candidates and not update.learnt):
        return None
    return update.learnt.get(run.plan.update_name(item.round, item.task_id, item.candidate.index), 0.0) > 0


def _evaluation(run: Run, row: StoredEvaluation, candidate_id: str) -> EvaluationRecord:
    return EvaluationRecord(
        evaluation_id=row.evaluation_id,
        candidate_id=candidate_id,
        student=row.student,
        repeat=row.repeat,
        phase=cast(Literal["round", "commit"], row.phase),
        state=cast(Literal["report", "rejected", "failed"], row.state),
        reason=row.reason,
        attempts=row.attempts,
        reward=row.reward,
        parts=dict(row.parts or {}),
        report=row.outcome if isinstance(row.outcome, EvaluationReport) else None,
        seconds=row.seconds,
        seed=round_seed(run, Evaluate(row.round, row.task_id, row.edit, row.student, row.repeat))
        if row.phase == "round"
        else None,
    )
