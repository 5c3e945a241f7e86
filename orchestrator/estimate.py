"""How long what is left of a run will take. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.plan import Plan


def seconds_left(
    mean_s: float | None, remaining: Mapping[str, int], slots: Mapping[str, int], rounds: int = 0
) -> float | None:
    """Estimate from a mean evaluation's seconds and what remains a student; the slowest student decides.

    `rounds` are those that begin only when the one under way has ended: each takes an evaluation's time at the least,
    however many slots there are.
    """
    if mean_s is None:
        return None
    return max(
        (mean_s * max(count / max(1, slots.get(name, 1)), rounds) for name, count in remaining.items()), default=0.0
    )


def run_seconds(
    plan: Plan, slots: Mapping[str, int], evaluation_s: Mapping[str, float], teacher_s: float | None
) -> float | None:
    """Estimate for a whole run; None when a student or the teacher has never been timed.

    `evaluation_s` are mean seconds of an evaluation by student, `teacher_s` those of the teacher for a group, its part
    of the round's update included. In strict rounds one waits for the other, and each takes an evaluation's time at the
    least, however many slots there are; with a staleness the slower one decides, and the other is waited for in the
    first round. At the end each student trains a version a task, one over the other.
    """
    if teacher_s is None or any(name not in evaluation_s for name in plan.students):
        return None
    each = plan.evaluations // len(plan.students)
    groups = plan.rounds * len(plan.tasks) * len(plan.audiences)
    in_turn = 1 if plan.staleness else plan.rounds
    slowest = max(evaluation_s[name] * max(each / max(1, slots.get(name, 1)), in_turn) for name in plan.students)
    teaching = groups * teacher_s
    committing = len(plan.tasks) * max(evaluation_s[name] for name in plan.students) if plan.commits else 0.0
    if plan.staleness:
        return max(slowest, teaching) + min(slowest, teaching) / plan.rounds + committing
    return slowest + teaching + committing
