"""From a report to a reward: gain over the untouched student on the same questions, less what it cost.

    reward = sum over graders of weight x (after - before)
             - retention_penalty x what was forgotten - token_penalty x thousands of tokens trained on

Each part is stored with the reward, and the reward follows from the parts and the settings alone: other weights can be
tried on stored rewards, and other graders on stored reports, without a student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tutelage.domain.evaluation import EvaluationOutcome, EvaluationReport
from tutelage.domain.reliability import Reliability, reliability, shrunken_means
from tutelage.domain.self_edit import Rejection
from tutelage.extensions import REWARDS, Extended

FORMULAS: Extended[Callable[[Mapping[str, float]], float]] = Extended({}, REWARDS)
"""What packages bring in place of the weighted sum, by name."""
FORGOTTEN = "forgotten"
TRAINED = "trained_kilotokens"


@dataclass(frozen=True)
class RewardSettings:
    """Weights of the parts. Gains of several graders are blended; forgetting costs `retention_penalty` a point lost."""

    grader_weights: dict[str, float] = field(default_factory=lambda: {"contains": 1.0, "loglik": 0.1})
    retention_grader: str = "loglik"
    retention_penalty: float = 0.0
    token_penalty: float = 0.0
    """Cost of a thousand tokens trained on, passes counted."""
    rejected_reward: float | None = None
    """What a rejected edit earns; None leaves it unscored."""
    formula: str = ""
    """Name of a package's formula, which takes the place of the weighted sum; empty means the sum."""
    shrink: bool = False
    """Whether a candidate's mean is drawn towards its document's by the share of noise that its repeats show."""


@dataclass(frozen=True)
class Reward:
    value: float
    parts: dict[str, float]
    """`gain_<grader>`, `forgotten` and `trained_kilotokens` before weighting, so that the reward can be recomputed."""


def reward_of(report: EvaluationReport, settings: RewardSettings) -> Reward:
    """The reward of a report, whose baseline is the untouched student's on the same questions.

    Raises KeyError when the report lacks a grader that has a weight, or the retention grader where there is a
    retention quiz.
    """
    parts = {f"gain_{name}": report.after.scores[name] - report.before.scores[name] for name in settings.grader_weights}
    if report.retention_before.answers and report.retention_after.answers:
        grader = settings.retention_grader
        parts[FORGOTTEN] = max(0.0, report.retention_before.scores[grader] - report.retention_after.scores[grader])
    parts[TRAINED] = report.cost.tokens / 1000
    return Reward(value_of(parts, settings), parts)


def value_of(parts: Mapping[str, float], settings: RewardSettings) -> float:
    """The reward that stored parts are worth under `settings`.

    KeyError for a weighted grader whose gain is missing, or a formula that no package gives.
    """
    if settings.formula:
        return float(FORMULAS[settings.formula](parts))
    gain = sum(weight * parts[f"gain_{name}"] for name, weight in settings.grader_weights.items())
    forgotten, trained = parts.get(FORGOTTEN, 0.0), parts.get(TRAINED, 0.0)
    return gain - settings.retention_penalty * forgotten - settings.token_penalty * trained


def group_rewards(
    groups: Sequence[Sequence[Sequence[EvaluationOutcome]]], settings: RewardSettings
) -> list[list[float | None]]:
    """Rewards of candidates from their stored outcomes: `groups[document][candidate][repeat]`; None is unscored.

    A failure is left out: a fault is never a reward. An edit that was rejected, by the teacher's parser or a student,
    earns `rejected_reward`.
    """
    values = [
        [[value for item in outcomes if (value := _report_value(item, settings)) is not None] for outcomes in group]
        for group in groups
    ]
    estimates = candidate_estimates(values, settings.shrink)
    # A rejection is certain: it has no noise that a mean over repeats would shrink.
    return [
        [
            settings.rejected_reward if any(isinstance(item, Rejection) for item in outcomes) else estimate
            for outcomes, estimate in zip(group, found, strict=True)
        ]
        for group, found in zip(groups, estimates, strict=True)
    ]


def candidate_estimates(values: Sequence[Sequence[Sequence[float]]], shrink: bool) -> list[list[float | None]]:
    """One estimate a candidate from its repeats: their mean, shrunk within its document where that is asked for.

    Without a second repeat anywhere nothing tells signal from noise, and the mean stays as it is.
    """
    known: Reliability | None = reliability(values) if shrink else None
    if known is not None:
        return [shrunken_means(group, known) for group in values]
    return [[sum(repeats) / len(repeats) if repeats else None for repeats in group] for group in values]


def _report_value(outcome: EvaluationOutcome, settings: RewardSettings) -> float | None:
    return reward_of(outcome, settings).value if isinstance(outcome, EvaluationReport) else None
