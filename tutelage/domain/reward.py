"""From a report to a reward: gain over the untouched student on the same questions, less what was forgotten."""

from __future__ import annotations

from dataclasses import dataclass, field

from tutelage.domain.evaluation import EvaluationReport


@dataclass(frozen=True)
class RewardSettings:
    """Weights of the parts. Gains of several graders are blended; forgetting costs `retention_penalty` a point lost."""

    grader_weights: dict[str, float] = field(default_factory=lambda: {"contains": 1.0, "loglik": 0.1})
    retention_grader: str = "loglik"
    retention_penalty: float = 0.0
    rejected_reward: float | None = None
    """What a rejected edit earns; None leaves it unscored."""


@dataclass(frozen=True)
class Reward:
    value: float
    parts: dict[str, float]
    """`gain_<grader>` before weighting, and `forgotten`, so that the reward can be recomputed."""


def reward_of(report: EvaluationReport, settings: RewardSettings) -> Reward:
    """Sum of weight x (after - before) over graders, minus penalty x max(0, retention before - after).

    Raises KeyError when the report lacks a grader that has a weight.
    """
    parts = {f"gain_{name}": report.after.scores[name] - report.before.scores[name] for name in settings.grader_weights}
    value = sum(weight * parts[f"gain_{name}"] for name, weight in settings.grader_weights.items())
    if report.retention_before.answers and report.retention_after.answers:
        grader = settings.retention_grader
        forgotten = max(0.0, report.retention_before.scores[grader] - report.retention_after.scores[grader])
        parts["forgotten"] = forgotten
        value -= settings.retention_penalty * forgotten
    return Reward(value, parts)
