"""A reward is the sum of its stored parts, faults earn nothing, and noise is told from signal as worked out by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.domain.evaluation import (
    Answer,
    EvaluationOutcome,
    EvaluationReport,
    Failure,
    InnerLoopSettings,
    QuizResult,
    TrainingCost,
)
from tutelage.domain.reliability import Reliability, reliability, shrunken_means
from tutelage.domain.reward import (
    Repeats,
    RewardSettings,
    candidate_estimates,
    candidate_rewards,
    parts_of,
    repeats_of,
    reward_of,
    value_of,
)
from tutelage.domain.self_edit import Rejection, RejectionReason

PUBLISHED = Path(__file__).parents[3] / "shared/data/published_rewards_round1.json"
REJECTED = Rejection(RejectionReason.EMPTY)


def quiz(**scores: float) -> QuizResult:
    return QuizResult.of((Answer("1", "", scores),))


def report(gain: float = 0.5, loglik: float = 2.0, tokens: int = 0, forgotten: float | None = None) -> EvaluationReport:
    retention = (QuizResult(), QuizResult())
    if forgotten is not None:
        retention = (quiz(loglik=-1.0), quiz(loglik=-1.0 - forgotten))
    return EvaluationReport(
        evaluation_id="e",
        before=quiz(contains=0.25, loglik=-5.0),
        after=quiz(contains=0.25 + gain, loglik=-5.0 + loglik),
        retention_before=retention[0],
        retention_after=retention[1],
        effective_settings=InnerLoopSettings(),
        cost=TrainingCost(tokens=tokens),
        answer_overlap=0.0,
        finished_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def test_blend_less_penalties_by_hand() -> None:
    settings = RewardSettings({"contains": 1.0, "loglik": 0.1}, retention_penalty=0.5, token_penalty=0.01)
    found = reward_of(report(0.5, 2.0, tokens=4000, forgotten=0.4), settings)
    assert found.parts == {
        "gain_contains": 0.5,
        "gain_loglik": 2.0,
        "forgotten": pytest.approx(0.4),
        "trained_kilotokens": 4.0,
    }
    assert found.value == pytest.approx(0.5 + 0.2 - 0.5 * 0.4 - 0.01 * 4)


def test_what_was_learnt_beside_is_no_reward_and_no_retention_quiz_no_penalty() -> None:
    settings = RewardSettings(retention_penalty=1.0)
    assert reward_of(report(forgotten=-3.0), settings).parts["forgotten"] == 0.0
    assert "forgotten" not in reward_of(report(), settings).parts


def test_other_weights_are_tried_on_stored_parts() -> None:
    stored = json.loads(json.dumps(reward_of(report(tokens=1500, forgotten=1.0), RewardSettings()).parts))
    other = RewardSettings({"loglik": 1.0}, retention_penalty=2.0, token_penalty=0.2)
    assert value_of(stored, other) == pytest.approx(reward_of(report(tokens=1500, forgotten=1.0), other).value)
    assert value_of(stored, other) == pytest.approx(2.0 - 2.0 - 0.3)
    with pytest.raises(KeyError):
        value_of(stored, RewardSettings({"judge": 1.0}))


def test_rewards_of_stored_outcomes_without_a_student() -> None:
    groups: list[list[list[EvaluationOutcome]]] = [
        [[report(0.5, 0.0), report(0.25, 0.0)], [report(0.0, 0.0), Failure("gone")], [REJECTED], [Failure("gone")]],
        [[report(0.75, 0.0), report(0.75, 0.0), REJECTED]],
    ]

    def rewards(settings: RewardSettings) -> list[list[float | None]]:
        return candidate_rewards([[repeats_of(each, settings) for each in group] for group in groups], settings)

    assert rewards(RewardSettings({"contains": 1.0})) == [[pytest.approx(0.375), 0.0, None, None], [0.75]]
    punished = rewards(RewardSettings({"contains": 1.0}, rejected_reward=-0.1, shrink=True))
    assert punished[0][2:] == [-0.1, None]
    assert punished[1] == [pytest.approx((0.75 + 0.75 - 0.1) / 3)]


def test_forgetting_is_a_part_only_where_its_grader_scored() -> None:
    seen = replace(report(), retention_before=quiz(contains=0.5), retention_after=quiz(contains=0.25))
    assert "forgotten" not in reward_of(seen, RewardSettings()).parts
    # Where it has a price, or a formula may give it one, a missing score is an error and not nothing lost.
    for priced in (RewardSettings(retention_penalty=0.1), RewardSettings(formula="careful")):
        with pytest.raises(KeyError):
            parts_of(seen, priced)


def test_what_was_rejected_each_time_earns_what_is_agreed_to_the_last_digit() -> None:
    for agreed in (-0.1, -0.05, -0.7):
        rewards = candidate_rewards([[Repeats((), 3), Repeats((), 6)]], RewardSettings(rejected_reward=agreed))
        assert rewards == [[agreed, agreed]]


def test_variance_components_by_hand() -> None:
    # Means 2 and 6 about 4: between 16 with 1 degree, within 2 with 2 degrees.
    found = reliability([[[1, 3], [5, 7]]])
    assert found is not None
    expected = Reliability(between=7.0, within=2.0, single=14 / 18, mean=0.875, repeats=2.0)
    assert asdict(found) == pytest.approx(asdict(expected))
    assert found.of_mean(2) == pytest.approx(0.875)
    # Shrunk by one eighth towards 4.
    assert shrunken_means([[1, 3], [5, 7]], found) == pytest.approx([2.25, 5.75])


def test_shrout_and_fleiss() -> None:
    # Table 2 of the paper: six targets, four judges; ICC(1,1) is 0.17, ICC(1,4) is 0.44.
    table = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    found = reliability([table])
    assert found is not None
    assert (round(found.single, 2), round(found.mean, 2)) == (0.17, 0.44)


def test_documents_are_not_compared_with_each_other() -> None:
    one = [[1.0, 3.0], [5.0, 7.0]]
    far = [[101.0, 103.0], [105.0, 107.0]]
    assert reliability([one, far]) == reliability([one, one])


def test_unequal_repeats_by_hand() -> None:
    # Candidates {0, 2} and {4}, middle 2: between 2 x 1 + 1 x 4 = 6, within 2, a degree each; n0 = 3 - 5 / 3.
    found = reliability([[[0, 2], [4], []], [[9, 9, 9]]])
    assert found is not None
    assert found.repeats == pytest.approx(4 / 3)
    assert found.between == pytest.approx((6 - 2) / (4 / 3))
    shrunk = shrunken_means([[0, 2], [4], []], found)
    assert shrunk[2] is None
    # The one that was seen once is drawn further.
    middle = (1 / 4 * 1 + 1 / 5 * 4) / (1 / 4 + 1 / 5)
    assert shrunk[:2] == pytest.approx([middle + 3 / 4 * (1 - middle), middle + 3 / 5 * (4 - middle)])


def test_nothing_to_tell_apart() -> None:
    assert reliability([]) is None
    assert reliability([[[1.0], [2.0]]]) is None
    assert reliability([[[1.0, 2.0]]]) is None
    same = reliability([[[1.0, 1.0], [1.0, 1.0]]])
    assert same is not None
    assert (same.single, same.mean, same.between) == (0.0, 0.0, 0.0)
    noise = reliability([[[0.0, 1.0], [0.0, 1.0]]])
    assert noise is not None
    assert noise.between == 0.0
    assert shrunken_means([[0.0, 1.0], [0.5, 1.5]], noise) == pytest.approx([0.75, 0.75])
    sure = reliability([[[0.0, 0.0], [1.0, 1.0]]])
    assert sure is not None
    assert shrunken_means([[0.0, 0.0], [1.0]], sure) == pytest.approx([0.0, 1.0])


def test_without_repeats_the_mean_stays() -> None:
    assert candidate_estimates([[[1.0], [], [3.0]]], shrink=True) == [[1.0, None, 3.0]]


REPEATS = st.lists(st.floats(-1, 1), max_size=3)


@given(st.lists(st.lists(REPEATS, max_size=4), max_size=4))
def test_shrinking_keeps_within_the_documents_means_and_loses_none(groups: list[list[list[float]]]) -> None:
    plain, shrunk = candidate_estimates(groups, False), candidate_estimates(groups, True)
    for means, drawn in zip(plain, shrunk, strict=True):
        known = [value for value in means if value is not None]
        assert [value is None for value in drawn] == [value is None for value in means]
        assert all(min(known) - 1e-9 <= value <= max(known) + 1e-9 for value in drawn if value is not None)


@given(
    st.lists(
        st.lists(st.lists(st.floats(-1, 1), min_size=2, max_size=2), min_size=2, max_size=3), min_size=1, max_size=3
    )
)
def test_correlations_are_bounded_above(groups: list[list[list[float]]]) -> None:
    found = reliability(groups)
    assert found is not None
    assert found.single <= 1 + 1e-9
    assert found.mean <= 1 + 1e-9
    assert 0 <= found.of_mean(3) <= 1


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published rewards are not at {PUBLISHED}")
def test_published_rewards() -> None:
    rows = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    found = reliability([[candidate["adapted"] for candidate in row["candidates"]] for row in rows])
    assert found is not None
    assert (round(found.mean, 2), found.repeats) == (0.32, 3)
