"""An update's identity and its lessons: what it is called, and what of it is fit to learn from."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from teacher.algorithm import Algorithm, Sample, SampleGroup, in_order
from teacher.algorithms import find_algorithm, options_of, settings_violations
from tutelage.domain.canonical import content_hash
from tutelage.domain.errors import FieldViolation, InvalidInput, PreconditionFailed, TutelageError
from tutelage.domain.policy import StaleCandidates, UpdateRequest
from tutelage.v1 import policy_pb2

COLDEST = 0.1
"""Below it the rounding of a logit, divided by the temperature, is more than a clip lets through."""
WHY_SAMPLED = "its gradient is of the distribution that was sampled from"


@dataclass(frozen=True)
class Lessons:
    """What an update learns from, and how many candidates it leaves out for which reason."""

    groups: tuple[SampleGroup, ...]
    unscored: int = 0
    stale: int = 0
    passed_over: int = 0
    """Scored and fresh, but not chosen by the algorithm."""
    message: str = ""
    """For people: why there is nothing to learn."""
    weights: dict[str, float] = field(default_factory=dict)
    """How each candidate is learnt from: above 0 made more probable, below 0 less."""

    @property
    def kept(self) -> int:
        """How many candidates are learnt from."""
        return sum(len(group.samples) for group in self.groups)


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
    wrong = settings_violations(request.algorithm, request.settings, max_rank)
    if not request.groups:
        wrong.append(FieldViolation("groups", "", "at least one group of candidates"))
    wrong += _repeated("groups.group_id", [group.group_id for group in request.groups])
    ids = [item.candidate_id for group in request.groups for item in group.candidates]
    wrong += _repeated("groups.candidates.candidate_id", ids)
    if wrong:
        raise InvalidInput(wrong)


def lessons_of(
    request: UpdateRequest, tokenizer_hash: str, ages: Mapping[str, int], vocabulary: int = 2**31
) -> Lessons:
    """What the algorithm of a checked request learns from.

    `ages`: how many updates each version of the parent's lineage is behind the parent; a version that is not in it is
    stale however old. `vocabulary`: above all ids that the model knows. InvalidInput for a rollout nobody can read,
    PreconditionFailed for another tokenizer's.
    """
    algorithm, settings = find_algorithm(request.algorithm), request.settings
    groups, unscored, stale = [], 0, 0
    temperature: float | None = None
    for g, group in enumerate(request.groups):
        samples = []
        for c, item in enumerate(group.candidates):
            field = f"groups[{g}].candidates[{c}].rollout"
            rollout = _read(item.rollout, field, tokenizer_hash, vocabulary)
            if item.reward is None:
                unscored += 1
                continue
            if ages.get(rollout.policy_version, settings.max_staleness + 1) > settings.max_staleness:
                stale += 1
                if settings.stale is StaleCandidates.DROP:
                    continue
            if algorithm.needs_log_probs:
                temperature = _temperature(rollout) if temperature is None else temperature
                _check_log_probs(rollout, field, request.algorithm, temperature)
            samples.append(
                Sample(
                    item.candidate_id,
                    tuple(rollout.prompt_ids),
                    tuple(rollout.completion_ids),
                    item.reward,
                    tuple(rollout.log_probs),
                    rollout.ended,
                    tuple(rollout.forced),
                    temperature=_temperature(rollout),
                )
            )
        if samples:
            groups.append(SampleGroup(group.group_id, tuple(samples)))
    dropped = stale if settings.stale is StaleCandidates.DROP else 0
    return _chosen(algorithm, in_order(groups), request, unscored, dropped)


def sampling_violations(algorithm: Algorithm, name: str, temperature: float, top_p: float) -> list[FieldViolation]:
    """What is wrong with a sampling whose log-probabilities the algorithm would use."""
    if not algorithm.needs_log_probs:
        return []
    wrong = []
    if not temperature >= COLDEST:
        allowed = f"{COLDEST} or more for {name}: {WHY_SAMPLED}"
        wrong.append(FieldViolation("sampling.temperature", str(temperature), allowed))
    if top_p != 1:
        wrong.append(FieldViolation("sampling.top_p", str(top_p), f"1 for {name}: {WHY_SAMPLED}"))
    return wrong


def _chosen(
    algorithm: Algorithm, groups: tuple[SampleGroup, ...], request: UpdateRequest, unscored: int, stale: int
) -> Lessons:
    options = options_of(algorithm, request.settings)
    fit = sum(len(group.samples) for group in groups)
    if not fit:
        every = sum(len(group.candidates) for group in request.groups)
        reason = f"none of the {every} candidates was scored" if unscored == every else "no scored candidate is fresh"
        detail = f" ({unscored} unscored, {stale} stale)" if stale else ""
        return Lessons((), unscored, stale, 0, reason + detail)
    try:
        chosen = algorithm.select(groups, request.settings, options)
        kept = sum(len(group.samples) for group in chosen)
        message = "" if kept else algorithm.why_nothing(groups, request.settings, options)
        weights = _finite(algorithm.weights(chosen, options)) if kept else {}
    except TutelageError:
        raise
    except Exception as error:
        # Most likely a package's: whoever is refused is told whose.
        rule = getattr(options, "rule", "")
        named = f"algorithm {request.algorithm!r}" + (f" with rule {rule!r}" if rule else "")
        raise PreconditionFailed(f"{named} chooses nothing to learn from: {type(error).__name__}: {error}") from error
    return Lessons(chosen if kept else (), unscored, stale, fit - kept, message, weights)


def _finite(weights: Mapping[str, float]) -> dict[str, float]:
    """ValueError or TypeError for what is no number: it would be stored with the result, which nobody could read."""
    for candidate, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"candidate {candidate!r} has the weight {weight}")
    return {candidate: float(weight) for candidate, weight in weights.items()}


def _read(content: bytes, field: str, tokenizer_hash: str, vocabulary: int) -> policy_pb2.Rollout:
    rollout = policy_pb2.Rollout()
    try:
        rollout.ParseFromString(content)
    except DecodeError:
        raise InvalidInput.of(field, f"{len(content)} bytes", "a rollout of this teacher") from None
    if not rollout.prompt_ids or not rollout.completion_ids:
        raise InvalidInput.of(field, "no ids", "a rollout with prompt and completion ids")
    if rollout.tokenizer_hash != tokenizer_hash:
        raise PreconditionFailed(f"{field} was written with another tokenizer, {rollout.tokenizer_hash[:12]}")
    for name, ids in (("prompt_ids", rollout.prompt_ids), ("completion_ids", rollout.completion_ids)):
        unknown = next((token for token in ids if not 0 <= token < vocabulary), None)
        if unknown is not None:
            raise InvalidInput.of(f"{field}.{name}", unknown, f"0 to {vocabulary - 1}")
    if len(rollout.forced) not in (0, len(rollout.completion_ids)):
        raise InvalidInput.of(
            f"{field}.forced", f"{len(rollout.forced)} of them", f"none or {len(rollout.completion_ids)}, one a token"
        )
    return rollout


def _check_log_probs(rollout: policy_pb2.Rollout, field: str, name: str, asked: float) -> None:
    """InvalidInput where they are not one a token, or not of the distribution that was sampled at `asked`."""
    if len(rollout.log_probs) != len(rollout.completion_ids):
        raise InvalidInput.of(
            f"{field}.log_probs", f"{len(rollout.log_probs)} of them", f"{len(rollout.completion_ids)}, one a token"
        )
    top_p = rollout.top_p if rollout.HasField("top_p") else 1.0
    for wrong in sampling_violations(find_algorithm(name), name, _temperature(rollout), top_p):
        raise InvalidInput.of(wrong.field.replace("sampling", field), wrong.value, wrong.allowed)
    if _temperature(rollout) != asked:
        raise InvalidInput.of(f"{field}.temperature", _temperature(rollout), f"{asked}, as in the rollouts before it")


def _temperature(rollout: policy_pb2.Rollout) -> float:
    return rollout.temperature if rollout.HasField("temperature") else 1.0


def _repeated(field: str, values: Sequence[str]) -> list[FieldViolation]:
    twice = sorted(value for value, times in Counter(values).items() if times > 1)
    return [FieldViolation(field, value, "an id that stands once") for value in twice]
