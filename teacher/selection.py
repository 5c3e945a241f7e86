"""What of the scored candidates is worth learning from: rules as pure functions, chosen by name in a run's settings.

    best      of each group the best candidate, if its reward is above the threshold (ReST^EM, arXiv 2312.06585)
    above     every candidate whose reward is above the threshold
    top       of all candidates above the threshold the best fraction, whatever their group
    weighted  every candidate above the threshold, with a weight in proportion to its reward above it
    lead      every candidate above the threshold and above its group's mean, weighted by its lead over that mean

Rewards of different documents differ by how hard the documents are, which no teacher can change: `lead` alone looks at
what one edit has over another of the same document. A threshold keeps out what did not help. Ties go to the shorter
completion, then to the lower id, never to the order in which candidates happened to arrive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, told_apart
from tutelage.extensions import SELECTION_RULES, Extended


@dataclass(frozen=True)
class SelectionSettings:
    """A rule and its bounds."""

    rule: str = "lead"
    """The default by the evidence of benchmarks/selection_rules.py (docs/rewards.md)."""
    min_reward: float = 0.0
    """Only rewards above it are kept."""
    fraction: float = 0.2
    """Of `top`: the share, above 0 to 1, of all scored candidates that is kept at most."""


@dataclass(frozen=True)
class Kept:
    """A candidate to learn from; the weights of all that are kept have the mean 1."""

    candidate: ScoredCandidate
    weight: float = 1.0


def kept_by(
    groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: SelectionSettings
) -> tuple[Kept, ...]:
    """What the rule keeps, ordered by group id and candidate id; never an unscored candidate.

    `lengths`: tokens by candidate id. InvalidInput for an unknown rule or a fraction that is none.
    """
    wrong = []
    if settings.rule not in RULES:
        wrong.append(FieldViolation("rule", settings.rule, "one of " + ", ".join(RULES)))
    if not 0 < settings.fraction <= 1:
        wrong.append(FieldViolation("fraction", str(settings.fraction), "above 0, at most 1"))
    if not math.isfinite(settings.min_reward):
        wrong.append(FieldViolation("min_reward", str(settings.min_reward), "a number"))
    if wrong:
        raise InvalidInput(wrong)
    return RULES[settings.rule](groups, lengths, settings)


def best_of_each_group(
    groups: Sequence[CandidateGroup], lengths: Mapping[str, int], min_reward: float
) -> tuple[ScoredCandidate, ...]:
    """At most one candidate a group, ordered by group id, never an unscored one; `lengths`: tokens by candidate id."""
    kept = []
    for group in sorted(groups, key=lambda group: group.group_id):
        worth = _above((group,), min_reward)
        if worth:
            kept.append(min(worth, key=lambda item: _rank(item, lengths)))
    return tuple(kept)


def why_none_kept(groups: Sequence[CandidateGroup], settings: SelectionSettings) -> str:
    """For people: why a rule kept nothing."""
    if settings.rule == "lead" and _above(groups, settings.min_reward):
        return "no candidate is above its group's mean: the rewards of each group are equal, or it has only one"
    return why_nothing_kept(groups, settings.min_reward)


def why_nothing_kept(groups: Sequence[CandidateGroup], min_reward: float) -> str:
    """For people: why an update learnt nothing."""
    rewards = [item.reward for group in groups for item in group.candidates if item.reward is not None]
    if not rewards:
        return f"none of the {sum(len(group.candidates) for group in groups)} candidates was scored"
    return f"no reward is above {min_reward:g}; the best of {len(rewards)} is {told_apart(max(rewards)):.4g}"


def _best(
    groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: SelectionSettings
) -> tuple[Kept, ...]:
    return tuple(Kept(item) for item in best_of_each_group(groups, lengths, settings.min_reward))


def _all_above(
    groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: SelectionSettings
) -> tuple[Kept, ...]:
    return tuple(Kept(item) for item in _above(groups, settings.min_reward))


def _top(groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: SelectionSettings) -> tuple[Kept, ...]:
    scored = sum(item.reward is not None for group in groups for item in group.candidates)
    worth = _above(groups, settings.min_reward)
    # At least one: a round with few candidates is no reason to learn nothing.
    count = max(1, math.floor(settings.fraction * scored))
    chosen = {item.candidate_id for item in sorted(worth, key=lambda item: _rank(item, lengths))[:count]}
    return tuple(Kept(item) for item in worth if item.candidate_id in chosen)


def _weighted(
    groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: SelectionSettings
) -> tuple[Kept, ...]:
    worth = _above(groups, settings.min_reward)
    return _in_proportion(worth, [(item.reward or 0.0) - settings.min_reward for item in worth])


def _lead(
    groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: SelectionSettings
) -> tuple[Kept, ...]:
    kept, leads = [], []
    for group in sorted(groups, key=lambda group: group.group_id):
        rewards = [item.reward for item in group.candidates if item.reward is not None]
        mean = math.fsum(rewards) / len(rewards) if rewards else 0.0
        ahead = [item for item in _above((group,), settings.min_reward) if told_apart((item.reward or 0.0) - mean) > 0]
        kept += ahead
        leads += [(item.reward or 0.0) - mean for item in ahead]
    return _in_proportion(kept, leads)


def _in_proportion(items: Sequence[ScoredCandidate], gains: Sequence[float]) -> tuple[Kept, ...]:
    mean = math.fsum(gains) / len(gains) if gains else 1.0
    return tuple(Kept(item, gain / mean) for item, gain in zip(items, gains, strict=True))


def _above(groups: Sequence[CandidateGroup], min_reward: float) -> list[ScoredCandidate]:
    return [
        item
        for group in sorted(groups, key=lambda group: group.group_id)
        for item in sorted(group.candidates, key=lambda item: item.candidate_id)
        if item.reward is not None and told_apart(item.reward) > min_reward
    ]


def _rank(item: ScoredCandidate, lengths: Mapping[str, int]) -> tuple[float, int, str]:
    return -told_apart(item.reward or 0.0), lengths[item.candidate_id], item.candidate_id


Rule = Callable[[Sequence[CandidateGroup], Mapping[str, int], SelectionSettings], tuple[Kept, ...]]
RULES: Mapping[str, Rule] = Extended(
    {"best": _best, "above": _all_above, "top": _top, "weighted": _weighted, "lead": _lead}, SELECTION_RULES
)
"""The rules by name, with those of installed packages."""
