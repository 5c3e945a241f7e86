"""From a report to a reward: gain over the untouched student on the same questions, less what it cost.

    reward = sum over graders of weight x (after - before)
             - retention_penalty x what was forgotten - token_penalty x thousands of tokens trained on

Each part is stored with the reward, and the reward follows from the parts and the settings alone: other weights can be
tried on stored rewards, and other graders on stored reports, without a student.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

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


@dataclass(frozen=True)
class Unscored:
    """A report that earns no reward, and why: a fault of a judge or a package, never of the answers."""

    reason: str


def reward_of(report: EvaluationReport, settings: RewardSettings) -> Reward:
    """The reward of a report, whose baseline is the untouched student's on the same questions.

    KeyError as `parts_of` and `value_of`.
    """
    parts = parts_of(report, settings)
    return Reward(value_of(parts, settings), parts)


def scored(report: EvaluationReport, settings: RewardSettings) -> Reward | Unscored:
    """The reward of a report, or why it has none: a score is missing, or a package's formula fails."""
    try:
        parts = parts_of(report, settings)
    except KeyError as error:
        return Unscored(f"the report has no score by grader {error}")
    made_by = f"the formula {settings.formula!r}" if settings.formula else "the weighted sum"
    try:
        # A copy: what a formula does to its parts is not stored.
        value = value_of(dict(parts), settings)
    except Exception as error:
        return Unscored(f"{made_by} gives no reward: {type(error).__name__}: {error}")
    if not math.isfinite(value):
        return Unscored(f"{made_by} gives no reward: {value} is not a finite number")
    return Reward(value, parts)


def parts_of(report: EvaluationReport, settings: RewardSettings) -> dict[str, float]:
    """What the reward of a report is made of.

    What was forgotten is a part where the retention grader has scored. Raises KeyError when the report lacks a grader
    that has a weight, or the retention grader where there is a retention quiz and forgetting has a price, which a
    formula may give it.
    """
    parts = {f"gain_{name}": report.after.scores[name] - report.before.scores[name] for name in settings.grader_weights}
    grader = settings.retention_grader
    asked = bool(report.retention_before.answers and report.retention_after.answers)
    priced = settings.retention_penalty > 0 or bool(settings.formula)
    if asked and (priced or grader in report.retention_after.scores):
        parts[FORGOTTEN] = max(0.0, report.retention_before.scores[grader] - report.retention_after.scores[grader])
    parts[TRAINED] = report.cost.tokens / 1000
    return parts


def value_of(parts: Mapping[str, float], settings: RewardSettings) -> float:
    """The reward that stored parts are worth under `settings`.

    KeyError for a weighted grader whose gain is missing, or a formula that no package gives.
    """
    if settings.formula:
        return float(FORMULAS[settings.formula](parts))
    gain = sum(weight * parts[f"gain_{name}"] for name, weight in settings.grader_weights.items())
    forgotten, trained = parts.get(FORGOTTEN, 0.0), parts.get(TRAINED, 0.0)
    return gain - settings.retention_penalty * forgotten - settings.token_penalty * trained


class Repeats(NamedTuple):
    """What the repeats of one candidate on one student came to; faults are left out, for a fault is never a reward."""

    rewards: Sequence[float]
    """Of the reports."""
    rejections: int = 0
    """Repeats in which the edit was rejected, by the teacher's parser or the student."""


def candidate_rewards(groups: Sequence[Sequence[Repeats]], settings: RewardSettings) -> list[list[float | None]]:
    """One reward a candidate, `groups[document][candidate]`: the mean over its repeats; None is unscored.

    A rejected repeat counts as `rejected_reward`, or not at all where that is None. With `shrink` the mean of the
    reports is drawn towards its document's first; a rejection is certain, so it neither is drawn nor tells of noise.
    """
    estimates = candidate_estimates([[repeats.rewards for repeats in group] for group in groups], settings.shrink)
    return [
        [_with_rejections(estimate, repeats, settings) for estimate, repeats in zip(found, group, strict=True)]
        for found, group in zip(estimates, groups, strict=True)
    ]


def _with_rejections(estimate: float | None, repeats: Repeats, settings: RewardSettings) -> float | None:
    if settings.rejected_reward is None or not repeats.rejections:
        return estimate
    if not repeats.rewards:
        # As it is, not as sums round it: groups are told apart by whether rewards differ at all.
        return settings.rejected_reward
    scored = len(repeats.rewards)
    total = (estimate or 0.0) * scored + settings.rejected_reward * repeats.rejections
    return total / (scored + repeats.rejections)


def repeats_of(outcomes: Sequence[EvaluationOutcome], settings: RewardSettings) -> Repeats:
    """A candidate's stored outcomes on one student, scored by `settings`; a report that earns nothing is left out."""
    found = [scored(outcome, settings) for outcome in outcomes if isinstance(outcome, EvaluationReport)]
    rejections = sum(isinstance(outcome, Rejection) for outcome in outcomes)
    return Repeats([reward.value for reward in found if isinstance(reward, Reward)], rejections)


def candidate_estimates(values: Sequence[Sequence[Sequence[float]]], shrink: bool) -> list[list[float | None]]:
    """One estimate a candidate from its repeats: their mean, shrunk within its document where that is asked for.

    Without a second repeat anywhere nothing tells signal from noise, and the mean stays as it is.
    """
    known: Reliability | None = reliability(values) if shrink else None
    if known is not None:
        return [shrunken_means(group, known) for group in values]
    return [[sum(repeats) / len(repeats) if repeats else None for repeats in group] for group in values]
