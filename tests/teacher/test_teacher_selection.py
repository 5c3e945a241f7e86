"""ReST^EM keeps the best of each group if it is above the threshold, whatever the order of arrival."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from teacher.selection import best_of_each_group, why_nothing_kept
from teacher.update_request import update_id
from tutelage.domain.policy import CandidateGroup, ScoredCandidate, UpdateRequest, UpdateSettings

REWARDS = st.one_of(st.none(), st.sampled_from([-0.5, 0.0, 0.1, 0.25, 1.0]))
GROUPS = st.lists(st.lists(st.tuples(REWARDS, st.integers(1, 3)), max_size=5), min_size=1, max_size=4)


def built(shape: list[list[tuple[float | None, int]]]) -> tuple[list[CandidateGroup], dict[str, int]]:
    groups, lengths = [], {}
    for g, items in enumerate(shape):
        made = []
        for c, (reward, length) in enumerate(items):
            made.append(ScoredCandidate(f"{g}-{c}", bytes([g, c]), reward))
            lengths[f"{g}-{c}"] = length
        groups.append(CandidateGroup(f"g{g}", tuple(made)))
    return groups, lengths


@given(shape=GROUPS, threshold=st.sampled_from([-1.0, 0.0, 0.2]), seed=st.integers(0, 99))
def test_selection(shape: list[list[tuple[float | None, int]]], threshold: float, seed: int) -> None:
    groups, lengths = built(shape)
    kept = best_of_each_group(groups, lengths, threshold)
    by_group = {item.candidate_id.split("-")[0]: item for item in kept}
    assert len(by_group) == len(kept)
    for g, group in enumerate(groups):
        scored = [item for item in group.candidates if item.reward is not None and item.reward > threshold]
        assert (str(g) in by_group) == bool(scored)
        if scored:
            best = by_group[str(g)]
            top = [item for item in scored if item.reward == max(i.reward or 0.0 for i in scored)]
            shortest = min(lengths[item.candidate_id] for item in top)
            assert best in top
            assert best.candidate_id == min(i.candidate_id for i in top if lengths[i.candidate_id] == shortest)
    order = random.Random(seed)
    mixed = [CandidateGroup(g.group_id, tuple(order.sample(g.candidates, len(g.candidates)))) for g in groups]
    order.shuffle(mixed)
    assert best_of_each_group(mixed, lengths, threshold) == kept
    assert named(mixed) == named(groups)


def named(groups: list[CandidateGroup], seed: int = 1) -> str:
    return update_id(UpdateRequest("p", "rest_em", UpdateSettings(), tuple(groups), seed, "run", 1))


def test_update_id_knows_reward_and_seed_and_says_why_nothing_was_kept() -> None:
    groups, _ = built([[(0.1, 1)]])
    other, _ = built([[(0.2, 1)]])
    assert len({named(groups), named(other), named(groups, 2)}) == 3
    assert "best of 1 is 0.1" in why_nothing_kept(groups, 0.5)
    assert "none of the 1 candidates" in why_nothing_kept(built([[(None, 1)]])[0], 0.0)
