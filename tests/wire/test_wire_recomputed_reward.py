"""Rewards under other settings come back from the wire as they went, unscored ones as unscored."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.wire.test_wire_round_trips import FINITE, FREE, LEAST_ONE, PROPERTY, TEXT
from tutelage.domain.errors import InvalidInput
from tutelage.domain.recomputed_reward import RecomputedReward
from tutelage.v1 import orchestrator_service_pb2 as pb
from tutelage.wire.recomputed_reward import recomputed_reward_from_wire, recomputed_reward_to_wire


@PROPERTY
@given(st.builds(RecomputedReward, TEXT, LEAST_ONE, TEXT, FREE, st.none() | FINITE, st.none() | FINITE))
def test_recomputed_reward(reward: RecomputedReward) -> None:
    sent = recomputed_reward_to_wire(reward).SerializeToString()
    assert recomputed_reward_from_wire(pb.RecomputeRewardsResponse.FromString(sent)) == reward


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(InvalidInput) as caught:
        recomputed_reward_from_wire(pb.RecomputeRewardsResponse(stored=math.nan, recomputed=math.inf))
    fields = {violation.field for violation in caught.value.violations}
    assert fields == {"candidate_id", "round", "task_id", "stored", "recomputed"}
