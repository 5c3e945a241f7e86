"""Why nothing was learnt is told of what the algorithm looked at."""

from __future__ import annotations

from teacher.algorithm import Sample, SampleGroup
from teacher.grpo import GRPO, GRPOOptions
from tutelage.domain.policy import UpdateSettings


def group(name: str, *rewards_and_ended: tuple[float, bool]) -> SampleGroup:
    return SampleGroup(
        name,
        tuple(
            Sample(f"{name}-{number}", (1,), (2,), reward, ended=ended)
            for number, (reward, ended) in enumerate(rewards_and_ended)
        ),
    )


def test_the_spread_is_of_what_is_not_left_out() -> None:
    settings, algorithm = UpdateSettings(), GRPO()
    groups = (group("a", (1.0, False), (0.25, True), (0.25, True)), group("b", (0.5, True), (0.0, False)))
    whole = GRPOOptions(skip_truncated=True)
    assert algorithm.select(groups, settings, whole) == ()
    told = algorithm.why_nothing(groups, settings, whole)
    assert told.startswith("in none of 2 groups do rewards differ by more than 0; the most is 0;")
    assert "2 candidates" in told
    assert "skip_truncated" in told
    wide = GRPOOptions(min_spread=1.5)
    assert algorithm.why_nothing(groups, settings, wide).endswith("by more than 1.5; the most is 0.75")
