"""An update's identity and its rows: what it is called, and what of it is fit to learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from teacher.selection import best_of_each_group
from tutelage.domain.canonical import content_hash
from tutelage.domain.errors import FieldViolation, InvalidInput, PreconditionFailed
from tutelage.domain.policy import UpdateRequest
from tutelage.v1 import policy_pb2

ALGORITHMS = ("rest_em",)
"""The algorithms that an update may name."""


@dataclass(frozen=True)
class Row:
    """A kept rollout: ids of prompt and completion; only the completion carries loss."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]


def update_id(request: UpdateRequest) -> str:
    """SHA-256 of parent, algorithm, settings, scored candidates and seed; the order of arrival does not matter."""
    return content_hash(
        {
            "parent_version": request.parent_version,
            "algorithm": request.algorithm,
            "settings": request.settings,
            "scored": scored_content(request),
            "seed": request.seed,
        }
    )


def data_hash(request: UpdateRequest) -> str:
    """SHA-256 of the scored candidates alone."""
    return content_hash(scored_content(request))


def scored_content(request: UpdateRequest) -> list[object]:
    """Groups as (id, [(candidate id, SHA-256 of its rollout, reward)]), sorted by id."""
    return [
        [
            group.group_id,
            [
                [item.candidate_id, hashlib.sha256(item.rollout).hexdigest(), item.reward]
                for item in sorted(group.candidates, key=lambda item: item.candidate_id)
            ],
        ]
        for group in sorted(request.groups, key=lambda group: group.group_id)
    ]


def check_request(request: UpdateRequest, max_rank: int) -> None:
    """InvalidInput with every field that no update could have."""
    settings = request.settings
    wrong = []
    if request.algorithm not in ALGORITHMS:
        wrong.append(FieldViolation("algorithm", request.algorithm, "one of " + ", ".join(ALGORITHMS)))
    if not 1 <= settings.rank <= max_rank:
        wrong.append(FieldViolation("settings.rank", str(settings.rank), f"1 to {max_rank}"))
    for name, value in (("alpha", settings.alpha), ("learning_rate", settings.learning_rate)):
        if not value > 0:
            wrong.append(FieldViolation(f"settings.{name}", str(value), "a number above 0"))
    for name, count in (("epochs", settings.epochs), ("batch_size", settings.batch_size)):
        if count < 1:
            wrong.append(FieldViolation(f"settings.{name}", str(count), "1 or more"))
    if not request.groups:
        wrong.append(FieldViolation("groups", "", "at least one group of candidates"))
    wrong += _repeated("groups.group_id", [group.group_id for group in request.groups])
    ids = [item.candidate_id for group in request.groups for item in group.candidates]
    wrong += _repeated("groups.candidates.candidate_id", ids)
    if wrong:
        raise InvalidInput(wrong)


def kept_rows(request: UpdateRequest, tokenizer_hash: str) -> tuple[Row, ...]:
    """The rows that the algorithm keeps.

    InvalidInput for a rollout nobody can read, PreconditionFailed for another tokenizer's.
    """
    rows: dict[str, Row] = {}
    for g, group in enumerate(request.groups):
        for c, item in enumerate(group.candidates):
            field = f"groups[{g}].candidates[{c}].rollout"
            rollout = policy_pb2.Rollout()
            try:
                rollout.ParseFromString(item.rollout)
            except DecodeError:
                raise InvalidInput.of(field, f"{len(item.rollout)} bytes", "a rollout of this teacher") from None
            if not rollout.prompt_ids or not rollout.completion_ids:
                raise InvalidInput.of(field, "no ids", "a rollout with prompt and completion ids")
            if rollout.tokenizer_hash != tokenizer_hash:
                raise PreconditionFailed(f"{field} was written with another tokenizer, {rollout.tokenizer_hash[:12]}")
            rows[item.candidate_id] = Row(tuple(rollout.prompt_ids), tuple(rollout.completion_ids))
    lengths = {name: len(row.completion_ids) for name, row in rows.items()}
    kept = best_of_each_group(request.groups, lengths, request.settings.min_reward)
    return tuple(rows[item.candidate_id] for item in kept)


def _repeated(field: str, values: Sequence[str]) -> list[FieldViolation]:
    twice = sorted({value for value in values if values.count(value) > 1})
    return [FieldViolation(field, value, "an id that stands once") for value in twice]
