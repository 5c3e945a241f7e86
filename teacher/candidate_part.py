"""Which part of a candidate is learnt: all of it, its first line, or what follows.

Where a form begins a candidate, its first line chooses how the student is trained (directives), or which format the
notes are in; where it chooses both, the two lines count as one. That is a handful of tokens before a hundred or more of
notes: learnt together, the notes' noise drowns what the reward says of the line. Tokens of the other part carry no
loss, as those that a form forced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from teacher.algorithm import Sample, SampleGroup, Training
from teacher.formats import REPLY_STARTS
from tutelage.domain.policy import Parser
from tutelage.settings import Settings

Part = Literal["all", "first_line", "notes"]


class PartOptions(Settings):
    """Options of an algorithm that can learn a part."""

    part: Part = "all"
    """What of a candidate is learnt: `all`, its `first_line` (directives, or the format it chose), or its `notes`."""
    anchor: float = Field(default=0.0, ge=0)
    """Weight of the KL to the parent on the tokens that `part` leaves out, so that they stay as they were; 0 turns it
    off."""

    @field_validator("anchor")
    @classmethod
    def _holds_something(cls, anchor: float, info: ValidationInfo) -> float:
        if anchor and info.data.get("part") == "all":
            raise ValueError("0 where part is all, which leaves nothing out to be held")
        return anchor


WHY_NONE = "no candidate begins with directives or with the format that it chose (part: first_line)"


def with_part(groups: Sequence[SampleGroup], part: Part) -> tuple[SampleGroup, ...]:
    """Groups whose candidates have the part; only those that a form begins have a first line of their own."""
    if part != "first_line":
        return tuple(groups)
    return tuple(
        SampleGroup(group.group_id, tuple(sample for sample in group.samples if any(sample.forced))) for group in groups
    )


def lacks_part(groups: Sequence[SampleGroup], part: Part) -> bool:
    """Whether no candidate has the part, so that `WHY_NONE` is why nothing was learnt."""
    return part == "first_line" and not any(group.samples for group in with_part(groups, part))


def learning_part(training: Training, part: Part, *, whole: bool = False) -> Training:
    """The same training, where only the part carries loss; `whole`: with what follows it, for an anchor to hold."""
    if part == "all":
        return training
    groups = tuple(
        SampleGroup(
            group.group_id, tuple(_of_part(sample, part, training.tokenizer, whole) for sample in group.samples)
        )
        for group in training.groups
    )
    return replace(training, groups=groups)


def _of_part(sample: Sample, part: Part, tokenizer: Any, whole: bool) -> Sample:
    ids = sample.completion_ids
    if not any(sample.forced):
        # Without a form all of it is notes.
        return sample
    end = _end_of_line(ids, 0, tokenizer)
    if tokenizer.decode(list(ids[end : _end_of_line(ids, end, tokenizer)])).startswith(REPLY_STARTS[Parser.MIXED]):
        # Behind directives, the format that was chosen.
        end = _end_of_line(ids, end, tokenizer)
    if part == "notes":
        return replace(sample, forced=tuple(flag or place < end for place, flag in enumerate(sample.forced)))
    if whole:
        return replace(sample, forced=tuple(flag or place >= end for place, flag in enumerate(sample.forced)))
    # What follows the line changes nothing of it, and would only take time.
    return replace(sample, completion_ids=ids[:end], log_probs=sample.log_probs[:end], forced=sample.forced[:end])


def _end_of_line(ids: Sequence[int], start: int, tokenizer: Any) -> int:
    """Behind the first token from `start` on that ends a line."""
    ends = (place + 1 for place in range(start, len(ids)) if "\n" in tokenizer.decode([ids[place]]))
    return next(ends, len(ids))
