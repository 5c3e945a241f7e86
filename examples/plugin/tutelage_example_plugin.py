"""An algorithm, a rule, a reward, a grader and a format of one's own. `docs/extending.md` goes through them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from teacher.algorithm import SampleGroup, in_order
from teacher.rest_em import RestEM
from teacher.selection import Kept, SelectionSettings
from tutelage.domain.policy import CandidateGroup, Format, Parser, UpdateSettings
from tutelage.grading import normalise
from tutelage.settings import Settings


class BestFewOptions(Settings):
    """What `update.options` may hold; values out of bounds are refused when a run starts."""

    count: int = Field(default=2, ge=1)
    """Most candidates of a group that are learnt from."""


class BestFew(RestEM):
    """ReST^EM on the best few of each group: its own choice, and the training that is there already."""

    summary = "fine-tunes on the best few candidates of each group"
    options = BestFewOptions

    def select(self, groups: Sequence[SampleGroup], settings: UpdateSettings, options: Any) -> tuple[SampleGroup, ...]:
        """The best `count` of each group, if above `min_reward`; among equals the lower id."""
        chosen = []
        for group in in_order(groups):
            worth = [sample for sample in group.samples if sample.reward > settings.min_reward]
            best = sorted(worth, key=lambda sample: (-sample.reward, sample.candidate_id))[: options.count]
            if best:
                chosen.append(SampleGroup(group.group_id, tuple(best)))
        return tuple(chosen)


def above_most(
    groups: Sequence[CandidateGroup], lengths: Mapping[str, int], settings: SelectionSettings
) -> tuple[Kept, ...]:
    """Candidates above `min_reward` whose reward is above the median of all."""
    scored = [item for group in groups for item in group.candidates if item.reward is not None]
    if not scored:
        return ()
    middle = statistics.median(item.reward for item in scored if item.reward is not None)
    bound = max(middle, settings.min_reward)
    return tuple(Kept(item) for item in scored if item.reward is not None and item.reward > bound)


def careful(parts: Mapping[str, float]) -> float:
    """The gain by `contains`, and twice as much as was forgotten taken off."""
    return parts["gain_contains"] - 2 * parts.get("forgotten", 0.0)


def begins_with(answer: str, gold: Sequence[str], question: str = "") -> float:
    """1 where the answer begins with a gold answer."""
    return float(any(normalise(answer).startswith(normalise(item)) for item in gold if normalise(item)))


GLOSSARY = Format(
    name="glossary",
    prompt="Explain every term that the following passage uses, one on each line.\n\n{title}\n{text}",
    parser=Parser.LINES,
)
