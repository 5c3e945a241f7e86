"""The run's numbers as metrics.jsonl: one line an evaluation, group, round, update and commit."""

from __future__ import annotations

import json
from collections.abc import Iterator

from orchestrator.report.bootstrap import Interval
from orchestrator.report.data import CandidateRecord, CommitRecord, EvaluationRecord, RunReport
from orchestrator.report.json_report import plain
from orchestrator.report.rewards import Group, RoundReward, groups, reward_by_round


def metrics_lines(report: RunReport) -> Iterator[str]:
    """JSON objects without line ends, each with `type` and `run_id`; what is not known is null."""
    run_id = report.header.summary.run_id
    for kind, fields in _records(report):
        record = {"type": kind, "run_id": run_id, **fields}
        yield json.dumps(plain(record), ensure_ascii=False, allow_nan=False)


def _records(report: RunReport) -> Iterator[tuple[str, dict[str, object]]]:
    made = groups(report)
    for candidate in report.candidates:
        for evaluation in candidate.evaluations:
            yield "evaluation", _evaluation(candidate, evaluation)
    for group in made:
        yield "group", _group(group)
    for item in reward_by_round(made):
        yield "round", _round(item, report)
    for number, result in report.updates:
        yield (
            "update",
            {
                "round": number,
                "update_id": result.update_id,
                "updated": result.updated,
                "algorithm": result.policy.algorithm,
                "policy_version": result.policy.version,
                "parent_version": result.policy.parent_version,
                "kept_candidates": result.kept_candidates,
                "unscored_candidates": result.unscored_candidates,
                "stale_candidates": result.stale_candidates,
                "train_seconds": result.train_seconds,
                "peak_memory_bytes": result.peak_memory_bytes or None,
                "peak_gpu_memory_bytes": result.peak_gpu_memory_bytes or None,
                "first_loss": result.first_loss,
                "last_loss": result.last_loss,
                "metrics": result.metrics,
                "message": result.message,
            },
        )
    for commit in report.commits:
        yield "commit", _commit(commit)


def _evaluation(candidate: CandidateRecord, evaluation: EvaluationRecord) -> dict[str, object]:
    fields: dict[str, object] = {
        "round": candidate.round,
        "task_id": candidate.task_id,
        "candidate_id": candidate.id,
        "candidate_index": candidate.index,
        "policy_version": candidate.policy_version,
        "evaluation_id": evaluation.evaluation_id,
        "student": evaluation.student,
        "repeat": evaluation.repeat,
        "phase": evaluation.phase,
        "state": evaluation.state,
        "reason": evaluation.reason,
        "attempts": evaluation.attempts,
        "reward": evaluation.reward,
        "parts": evaluation.parts,
    }
    if evaluation.report is not None:
        fields |= {
            "before": evaluation.report.before.scores,
            "after": evaluation.report.after.scores,
            "retention_before": evaluation.report.retention_before.scores,
            "retention_after": evaluation.report.retention_after.scores,
            "answer_overlap": evaluation.report.answer_overlap,
            "cost": evaluation.report.cost,
            "finished_at": evaluation.report.finished_at,
        }
    return fields


def _group(group: Group) -> dict[str, object]:
    return {
        "round": group.round,
        "task_id": group.task_id,
        "task_title": group.task_title,
        "candidates": len(group.candidates),
        "scored": len(group.scored),
        "mean_reward": group.mean,
        "best_reward": group.best,
        "rewards": [candidate.reward for candidate in group.candidates],
        "chosen": sorted(group.chosen_ids),
    }


def _interval(interval: Interval | None) -> dict[str, object] | None:
    if interval is None:
        return None
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "documents": interval.count}


def _round(item: RoundReward, report: RunReport) -> dict[str, object]:
    seconds: dict[str, float] = {}
    for phase in report.phases:
        if phase.round == item.round:
            seconds[phase.phase] = seconds.get(phase.phase, 0.0) + phase.seconds
    return {
        "round": item.round,
        "mean_reward": _interval(item.mean),
        "best_reward": _interval(item.best),
        "scored": item.scored,
        "unscored": item.unscored,
        "seconds": seconds,
    }


def _commit(commit: CommitRecord) -> dict[str, object]:
    return {
        "student": commit.student,
        "task_id": commit.task_id,
        "candidate_id": commit.candidate_id,
        "evaluation_id": commit.evaluation_id,
        "committed": commit.committed,
        "reason": commit.reason,
        "version": commit.version,
        "parent_version": commit.parent_version,
        "before": commit.quiz_before.scores,
        "after": commit.quiz_after.scores,
        "retention_after": commit.retention_after.scores,
    }
