"""Each rule keeps what it says, whatever the order of arrival, and never a candidate that nobody scored."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from teacher.algorithm import Sample, SampleGroup, with_spread
from teacher.dpo import DPO, DPOOptions
from teacher.selection import (
    RULES,
    Kept,
    SelectionSettings,
    best_of_each_group,
    kept_by,
    why_none_kept,
    why_nothing_kept,
)
from teacher.update_request import update_id
from tutelage.domain.errors import InvalidInput
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


def test_a_sum_in_another_order_is_the_same_reward() -> None:
    # Means of three seeds: two differ in which seed gave what, and one comes to 0 but for its last digit.
    first, second, nothing = ((0.1 + 0.2 + 0.3) / 3, (0.3 + 0.2 + 0.1) / 3, (0.1 + 0.2 - 0.3) / 3)
    assert first > second
    assert nothing > 0
    groups, lengths = built([[(first, 9), (second, 2)], [(nothing, 1)]])
    assert [item.candidate_id for item in best_of_each_group(groups, lengths, 0.0)] == ["0-1"]
    top = kept_by(groups, lengths, SelectionSettings("top", 0.0, 0.4))
    assert [item.candidate.candidate_id for item in top] == ["0-1"]
    assert why_nothing_kept(groups[1:], 0.0) == "no reward is above 0; the best of 1 is 0"
    samples = [
        Sample(name, (5,), (6,) * length, reward) for name, reward, length in (("a", first, 9), ("b", second, 2))
    ]
    assert not with_spread([SampleGroup("g", tuple(samples))], 0.0)
    worse = replace(samples[0], candidate_id="c", reward=0.0)
    (pair,) = DPO().select([SampleGroup("g", (*samples, worse))], UpdateSettings(), DPOOptions())
    assert [sample.candidate_id for sample in pair.samples] == ["b", "c"]
    almost = replace(samples[0], reward=0.8), replace(samples[1], reward=0.7)
    assert almost[0].reward - almost[1].reward > 0.1
    assert not DPO().select([SampleGroup("g", almost)], UpdateSettings(), DPOOptions(min_gap=0.1))


def named(groups: list[CandidateGroup], seed: int = 1) -> str:
    return update_id(UpdateRequest("p", "rest_em", UpdateSettings(), tuple(groups), seed, "run", 1))


def test_update_id_knows_reward_and_seed_and_says_why_nothing_was_kept() -> None:
    groups, _ = built([[(0.1, 1)]])
    other, _ = built([[(0.2, 1)]])
    assert len({named(groups), named(other), named(groups, 2)}) == 3
    assert "best of 1 is 0.1" in why_nothing_kept(groups, 0.5)
    assert "none of the 1 candidates" in why_nothing_kept(built([[(None, 1)]])[0], 0.0)


SMALL: list[list[tuple[float | None, int]]] = [
    [(0.5, 3), (0.1, 1), (None, 1)],
    [(0.3, 1), (0.3, 2)],
    [(-0.2, 1), (-0.4, 1)],
]


def names(kept: tuple[Kept, ...]) -> list[str]:
    return [item.candidate.candidate_id for item in kept]


@pytest.mark.parametrize(
    ("settings", "expected", "weights"),
    [
        (SelectionSettings("best"), ["0-0", "1-0"], [1, 1]),
        (SelectionSettings("best", -1.0), ["0-0", "1-0", "2-0"], [1, 1, 1]),
        (SelectionSettings("above"), ["0-0", "0-1", "1-0", "1-1"], [1, 1, 1, 1]),
        (SelectionSettings("above", 0.2), ["0-0", "1-0", "1-1"], [1, 1, 1]),
        # Six are scored: a third is two, and of the tie the shorter.
        (SelectionSettings("top", 0.0, 0.34), ["0-0", "1-0"], [1, 1]),
        (SelectionSettings("top", 0.0, 0.01), ["0-0"], [1]),
        (SelectionSettings("weighted"), ["0-0", "0-1", "1-0", "1-1"], [0.5 / 0.3, 0.1 / 0.3, 1, 1]),
        (SelectionSettings("weighted", 0.2), ["0-0", "1-0", "1-1"], [0.3 * 6, 0.1 * 6, 0.1 * 6]),
        # Means 0.3, 0.3 and -0.3.
        (SelectionSettings("lead"), ["0-0"], [1]),
        (SelectionSettings("lead", -1.0), ["0-0", "2-0"], [2 * 0.2 / 0.3, 2 * 0.1 / 0.3]),
    ],
)
def test_rules_by_hand(settings: SelectionSettings, expected: list[str], weights: list[float]) -> None:
    groups, lengths = built(SMALL)
    kept = kept_by(groups, lengths, settings)
    assert names(kept) == expected
    assert [item.weight for item in kept] == pytest.approx(weights)


@given(
    shape=GROUPS,
    rule=st.sampled_from(list(RULES)),
    threshold=st.sampled_from([-1.0, 0.0, 0.2]),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_every_rule(
    shape: list[list[tuple[float | None, int]]], rule: str, threshold: float, fraction: float, seed: int
) -> None:
    groups, lengths = built(shape)
    settings = SelectionSettings(rule, threshold, fraction)
    kept = kept_by(groups, lengths, settings)
    assert len(set(names(kept))) == len(kept)
    assert all(item.candidate.reward is not None and item.candidate.reward > threshold for item in kept)
    assert all(item.weight > 0 for item in kept)
    assert not kept or sum(item.weight for item in kept) / len(kept) == pytest.approx(1.0)
    order = random.Random(seed)
    mixed = [CandidateGroup(g.group_id, tuple(order.sample(g.candidates, len(g.candidates)))) for g in groups]
    order.shuffle(mixed)
    again = kept_by(mixed, lengths, settings)
    assert names(again) == names(kept)
    assert [item.weight for item in again] == pytest.approx([item.weight for item in kept])


def test_bad_settings_are_all_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        kept_by([], {}, SelectionSettings("luck", float("nan"), 0.0))
    assert [violation.field for violation in caught.value.violations] == ["rule", "fraction", "min_reward"]


def test_why_nothing_was_kept() -> None:
    groups, _ = built([[(0.5, 1), (0.5, 1)], [(0.2, 1)]])
    assert "above its group's mean" in why_none_kept(groups, SelectionSettings("lead"))
    assert "best of 3 is 0.5" in why_none_kept(groups, SelectionSettings("lead", 0.7))


@pytest.mark.parametrize(("arguments", "skipped"), [(["--quick"], False), (["--data", "absent.json"], True)])
def test_benchmark_runs_or_skips_plainly(arguments: list[str], skipped: bool, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks/selection_rules.py"
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last.get("skipped", False) is skipped
    assert skipped or {item["estimate"] for item in last["rules"]} == {"mean", "shrunken"}
