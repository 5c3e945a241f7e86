"""ReST^EM's choice (arXiv 2312.06585): of each group the best candidate, if it is worth learning from at all.

A threshold keeps out groups in which nothing helped; ties go to the shorter completion, then to the lower id, never to
the order in which candidates happened to arrive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tutelage.domain.policy import CandidateGroup, ScoredCandidate


def best_of_each_group(
    groups: Sequence[CandidateGroup], lengths: Mapping[str, int], min_reward: float
) -> tuple[ScoredCandidate, ...]:
    """At most one candidate a group, ordered by group id, never an unscored one; `lengths`: tokens by candidate id."""
    kept = []
    for group in sorted(groups, key=lambda group: group.group_id):
        worth = [item for item in group.candidates if item.reward is not None and item.reward > min_reward]
        if worth:
            kept.append(
                min(worth, key=lambda item: (-(item.reward or 0.0), lengths[item.candidate_id], item.candidate_id))
            )
    return tuple(kept)


def why_nothing_kept(groups: Sequence[CandidateGroup], min_reward: float) -> str:
    """For people: why an update learnt nothing."""
    rewards = [item.reward for group in groups for item in group.candidates if item.reward is not None]
    if not rewards:
        return f"none of the {sum(len(group.candidates) for group in groups)} candidates was scored"
    return f"no reward is above {min_reward:g}; the best of {len(rewards)} is {max(rewards):.4g}"
