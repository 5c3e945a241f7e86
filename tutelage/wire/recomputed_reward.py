"""Rewards of a run's candidates under other settings, on the wire."""

from __future__ import annotations

from tutelage.domain.recomputed_reward import RecomputedReward
from tutelage.v1 import orchestrator_service_pb2 as pb
from tutelage.wire.checks import Checks, fitting


def recomputed_reward_to_wire(reward: RecomputedReward) -> pb.RecomputeRewardsResponse:
    """The candidate's rewards as a message; unscored ones are unset."""
    return pb.RecomputeRewardsResponse(
        candidate_id=reward.candidate_id,
        round=fitting("round", reward.round),
        task_id=reward.task_id,
        student=reward.student,
        stored=reward.stored,
        recomputed=reward.recomputed,
    )


def recomputed_reward_from_wire(message: pb.RecomputeRewardsResponse) -> RecomputedReward:
    """A candidate with an id, a round and a task, and finite rewards where it has them."""
    checks = Checks("")
    return checks.passed(
        RecomputedReward(
            candidate_id=checks.text("candidate_id", message.candidate_id),
            round=checks.count("round", message.round, least=1),
            task_id=checks.text("task_id", message.task_id),
            student=message.student,
            stored=checks.finite("stored", message.stored) if message.HasField("stored") else None,
            recomputed=checks.finite("recomputed", message.recomputed) if message.HasField("recomputed") else None,
        )
    )
