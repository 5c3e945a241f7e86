"""How an update of the policy goes, and what came of it, on the wire."""

from __future__ import annotations

from collections.abc import Mapping

from tutelage.domain.description import UpdateProgress
from tutelage.domain.policy import LONGEST_METRIC, MOST_METRICS, UpdateResult
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.wire.checks import INT64_MAX, Checks, fitting
from tutelage.wire.policy import policy_from_wire, policy_to_wire


def update_progress_to_wire(progress: UpdateProgress) -> teacher_pb.UpdateProgress:
    """The progress as a message."""
    return teacher_pb.UpdateProgress(
        steps_done=progress.steps_done, steps_total=progress.steps_total, loss=progress.loss
    )


def update_progress_from_wire(message: teacher_pb.UpdateProgress, field: str = "progress") -> UpdateProgress:
    """Progress; its loss may be NaN."""
    checks = Checks(field)
    return checks.passed(
        UpdateProgress(
            checks.count("steps_done", message.steps_done),
            checks.count("steps_total", message.steps_total),
            message.loss,
        )
    )


def update_result_to_wire(result: UpdateResult) -> teacher_pb.UpdateResult:
    """The result as a message."""
    return teacher_pb.UpdateResult(
        policy=policy_to_wire(result.policy),
        update_id=result.update_id,
        updated=result.updated,
        kept_candidates=result.kept_candidates,
        train_seconds=result.train_seconds,
        message=result.message,
        unscored_candidates=result.unscored_candidates,
        stale_candidates=result.stale_candidates,
        peak_memory_bytes=fitting("result.peak_memory_bytes", result.peak_memory_bytes, INT64_MAX),
        peak_gpu_memory_bytes=fitting("result.peak_gpu_memory_bytes", result.peak_gpu_memory_bytes, INT64_MAX),
        learnt=[teacher_pb.LearntCandidate(candidate_id=name, weight=weight) for name, weight in result.learnt.items()],
        metrics=result.metrics,
        first_loss=result.first_loss,
        last_loss=result.last_loss,
    )


def update_result_from_wire(message: teacher_pb.UpdateResult, field: str = "result") -> UpdateResult:
    """A result that names its policy."""
    checks = Checks(field)
    return checks.passed(
        UpdateResult(
            policy=checks.required(policy_from_wire, message, "policy"),
            update_id=message.update_id,
            updated=message.updated,
            kept_candidates=checks.count("kept_candidates", message.kept_candidates),
            train_seconds=checks.at_least_zero("train_seconds", message.train_seconds),
            message=message.message,
            unscored_candidates=checks.count("unscored_candidates", message.unscored_candidates),
            stale_candidates=checks.count("stale_candidates", message.stale_candidates),
            peak_memory_bytes=checks.count("peak_memory_bytes", message.peak_memory_bytes),
            peak_gpu_memory_bytes=checks.count("peak_gpu_memory_bytes", message.peak_gpu_memory_bytes),
            learnt={item.candidate_id: checks.finite("learnt.weight", item.weight) for item in message.learnt},
            metrics=_metrics(checks, message.metrics),
            first_loss=checks.finite("first_loss", message.first_loss) if message.HasField("first_loss") else None,
            last_loss=checks.finite("last_loss", message.last_loss) if message.HasField("last_loss") else None,
        )
    )


def _metrics(checks: Checks, values: Mapping[str, float]) -> dict[str, float]:
    if len(values) > MOST_METRICS:
        checks.wrong("metrics", f"{len(values)} names", f"at most {MOST_METRICS}")
        return {}
    for name in values:
        if not 0 < len(name) <= LONGEST_METRIC:
            checks.wrong("metrics", name, f"names of 1 to {LONGEST_METRIC} characters")
    return checks.scores("metrics", values)
