"""Formats, candidates, policies and their updates on the wire."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf import json_format, struct_pb2

from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.domain.policy import (
    Candidate,
    CandidateGroup,
    Format,
    Parser,
    Policy,
    Sampling,
    ScoredCandidate,
    StaleCandidates,
    UpdateRequest,
    UpdateSettings,
)
from tutelage.domain.self_edit import Rejection, SelfEdit
from tutelage.v1 import policy_pb2 as pb
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.wire.checks import INT64_MAX, Checks, fitting, reverse, timestamp
from tutelage.wire.self_edit import rejection_from_wire, rejection_to_wire, self_edit_from_wire, self_edit_to_wire

_PARSERS: dict[int, Parser] = {
    pb.PARSER_LINES: Parser.LINES,
    pb.PARSER_WHOLE: Parser.WHOLE,
    pb.PARSER_QUESTION_ANSWER: Parser.QUESTION_ANSWER,
    pb.PARSER_PARAGRAPHS: Parser.PARAGRAPHS,
    pb.PARSER_THOUGHT_LINES: Parser.THOUGHT_LINES,
    pb.PARSER_MIXED: Parser.MIXED,
}
_PARSER_VALUES = reverse(_PARSERS)
_STALE: dict[int, StaleCandidates] = {
    teacher_pb.STALE_CANDIDATES_UNSPECIFIED: StaleCandidates.DROP,
    teacher_pb.STALE_CANDIDATES_DROP: StaleCandidates.DROP,
    teacher_pb.STALE_CANDIDATES_WEIGHT: StaleCandidates.WEIGHT,
}
_STALE_VALUES = reverse(_STALE)


def format_to_wire(item: Format) -> pb.Format:
    """The format as a message."""
    message = pb.Format(
        name=item.name,
        prompt=item.prompt,
        directives=item.directives,
        max_documents=fitting("format.max_documents", item.max_documents),
    )
    message.parser = _PARSER_VALUES[item.parser]  # type: ignore[assignment]
    return message


def format_from_wire(message: pb.Format, field: str = "format") -> Format:
    """A format with a name, a prompt and a parser."""
    checks = Checks(field)
    return checks.passed(
        Format(
            name=checks.text("name", message.name),
            prompt=checks.text("prompt", message.prompt),
            parser=checks.enum("parser", message.parser, _PARSERS),
            directives=message.directives,
            max_documents=checks.count("max_documents", message.max_documents),
        )
    )


def sampling_to_wire(sampling: Sampling) -> pb.Sampling:
    """The sampling as a message."""
    return pb.Sampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_new_tokens=fitting("sampling.max_new_tokens", sampling.max_new_tokens),
    )


def sampling_from_wire(message: pb.Sampling, field: str = "sampling") -> Sampling:
    """Temperature of 0 (greedy) or more, top_p above 0 to 1, at least one token."""
    checks = Checks(field)
    if not 0 < message.top_p <= 1:
        checks.wrong("top_p", message.top_p, "a number above 0, at most 1")
    return checks.passed(
        Sampling(
            checks.at_least_zero("temperature", message.temperature),
            message.top_p,
            checks.count("max_new_tokens", message.max_new_tokens, least=1),
        )
    )


def candidate_to_wire(candidate: Candidate) -> pb.Candidate:
    """The candidate as a message."""
    message = pb.Candidate(
        index=candidate.index,
        policy_version=candidate.policy_version,
        format=candidate.format,
        text=candidate.text,
        rollout=candidate.rollout,
        completion_tokens=candidate.completion_tokens,
        seed=fitting("candidate.seed", candidate.seed, INT64_MAX),
        duplicates_removed=candidate.duplicates_removed,
    )
    if isinstance(candidate.result, SelfEdit):
        message.self_edit.CopyFrom(self_edit_to_wire(candidate.result))
    else:
        message.rejection.CopyFrom(rejection_to_wire(candidate.result))
    return message


def candidate_from_wire(message: pb.Candidate, field: str = "candidate") -> Candidate:
    """A candidate that names its policy and holds a self-edit or a rejection."""
    checks = Checks(field)
    result: SelfEdit | Rejection
    if message.WhichOneof("result") == "self_edit":
        result = checks.nested(self_edit_from_wire, message.self_edit, "self_edit")
    else:
        result = checks.required(rejection_from_wire, message, "rejection")
    return checks.passed(
        Candidate(
            index=checks.count("index", message.index),
            policy_version=checks.text("policy_version", message.policy_version),
            format=message.format,
            text=message.text,
            result=result,
            rollout=message.rollout,
            completion_tokens=checks.count("completion_tokens", message.completion_tokens),
            seed=message.seed,
            duplicates_removed=checks.count("duplicates_removed", message.duplicates_removed),
        )
    )


def _scored_to_wire(candidate: ScoredCandidate) -> pb.ScoredCandidate:
    return pb.ScoredCandidate(candidate_id=candidate.candidate_id, rollout=candidate.rollout, reward=candidate.reward)


def _scored_from_wire(message: pb.ScoredCandidate, field: str) -> ScoredCandidate:
    checks = Checks(field)
    reward = checks.finite("reward", message.reward) if message.HasField("reward") else None
    return checks.passed(ScoredCandidate(checks.text("candidate_id", message.candidate_id), message.rollout, reward))


def candidate_group_to_wire(group: CandidateGroup) -> pb.CandidateGroup:
    """The group as a message."""
    return pb.CandidateGroup(
        group_id=group.group_id, candidates=[_scored_to_wire(candidate) for candidate in group.candidates]
    )


def candidate_group_from_wire(message: pb.CandidateGroup, field: str = "group") -> CandidateGroup:
    """A group with an id, and candidates with ids and finite rewards (unset means unscored)."""
    checks = Checks(field)
    return checks.passed(
        CandidateGroup(
            checks.text("group_id", message.group_id), checks.each(_scored_from_wire, message.candidates, "candidates")
        )
    )


def policy_to_wire(policy: Policy) -> pb.Policy:
    """The policy as a message."""
    return pb.Policy(
        version=policy.version,
        parent_version=policy.parent_version,
        run_id=policy.run_id,
        round=policy.round,
        algorithm=policy.algorithm,
        data_hash=policy.data_hash,
        update_id=policy.update_id,
        created_at=timestamp(policy.created_at),
    )


def policy_from_wire(message: pb.Policy, field: str = "policy") -> Policy:
    """A policy with a version and a time."""
    checks = Checks(field)
    return checks.passed(
        Policy(
            version=checks.text("version", message.version),
            parent_version=message.parent_version,
            run_id=message.run_id,
            round=checks.count("round", message.round),
            algorithm=message.algorithm,
            data_hash=message.data_hash,
            update_id=message.update_id,
            created_at=checks.time(message, "created_at"),
        )
    )


def update_settings_to_wire(settings: UpdateSettings) -> teacher_pb.UpdateSettings:
    """The settings as a message; InvalidInput for a learning rate of 0, and options that are no JSON or not finite."""
    wrong = list(_not_finite(settings.options, "settings.options"))
    if settings.learning_rate == 0:
        # On the wire it would be none.
        wrong.append(
            FieldViolation("settings.learning_rate", "0", "a number above 0, or nothing for the algorithm's own")
        )
    if wrong:
        raise InvalidInput(wrong)
    message = teacher_pb.UpdateSettings(
        rank=fitting("settings.rank", settings.rank),
        alpha=settings.alpha,
        learning_rate=settings.learning_rate or 0.0,
        epochs=fitting("settings.epochs", settings.epochs),
        batch_size=fitting("settings.batch_size", settings.batch_size),
        min_reward=settings.min_reward,
        max_staleness=fitting("settings.max_staleness", settings.max_staleness),
        stale=_STALE_VALUES[settings.stale],  # type: ignore[arg-type]
    )
    try:
        message.options.update(settings.options)
    except (TypeError, ValueError) as error:
        raise InvalidInput.of("settings.options", settings.options, f"JSON values ({error})") from error
    return message


def _not_finite(value: object, field: str) -> Iterator[FieldViolation]:
    """The numbers in a JSON value that are none in JSON, or that its doubles cannot hold."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _not_finite(each, f"{field}.{key}")
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _not_finite(each, f"{field}[{index}]")
    elif isinstance(value, int | float) and not abs(value) <= sys.float_info.max:
        # Python refuses to spell integers of many thousand digits.
        told = str(value) if isinstance(value, float) else f"an integer of {value.bit_length()} bits"
        yield FieldViolation(field, told, "a finite number")


def _plain(value: struct_pb2.Struct | struct_pb2.Value) -> object:
    """What a message of JSON holds, also numbers that are none in JSON."""
    if isinstance(value, struct_pb2.Struct):
        return {key: _plain(each) for key, each in value.fields.items()}
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _plain(value.struct_value)
    if kind == "list_value":
        return [_plain(each) for each in value.list_value.values]
    return getattr(value, kind) if kind else None


def update_settings_from_wire(message: teacher_pb.UpdateSettings, field: str = "settings") -> UpdateSettings:
    """Settings with every number that must be above 0 above 0."""
    checks = Checks(field)
    try:
        options = json_format.MessageToDict(message.options)
    except (json_format.Error, ValueError) as error:
        wrong = list(_not_finite(_plain(message.options), f"{field}.options"))
        raise InvalidInput(wrong or [FieldViolation(f"{field}.options", str(error), "JSON values")]) from error
    return checks.passed(
        UpdateSettings(
            rank=checks.count("rank", message.rank, least=1),
            alpha=checks.positive("alpha", message.alpha),
            learning_rate=checks.positive("learning_rate", message.learning_rate) if message.learning_rate else None,
            epochs=checks.count("epochs", message.epochs, least=1),
            batch_size=checks.count("batch_size", message.batch_size, least=1),
            min_reward=checks.finite("min_reward", message.min_reward),
            max_staleness=checks.count("max_staleness", message.max_staleness)
            if message.HasField("max_staleness")
            else UpdateSettings.max_staleness,
            stale=checks.enum("stale", message.stale, _STALE),
            options=options,
        )
    )


def update_request_to_wire(request: UpdateRequest) -> Iterator[teacher_pb.UpdatePolicyRequest]:
    """One header, then a message a group, so that no message grows with the round."""
    yield teacher_pb.UpdatePolicyRequest(
        header=teacher_pb.UpdatePolicyHeader(
            parent_version=request.parent_version,
            algorithm=request.algorithm,
            settings=update_settings_to_wire(request.settings),
            seed=fitting("seed", request.seed, INT64_MAX),
            run_id=request.run_id,
            round=request.round,
        )
    )
    for group in request.groups:
        yield teacher_pb.UpdatePolicyRequest(group=candidate_group_to_wire(group))


def update_request_from_wire(messages: Iterable[teacher_pb.UpdatePolicyRequest], field: str = "") -> UpdateRequest:
    """The header and all groups; InvalidInput when the header is missing, late or there twice."""
    iterator = iter(messages)
    first = next(iterator, None)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidInput.of(Checks(field).path("header"), "nothing", "a header as the first message")
    header = first.header
    checks = Checks(field)
    groups: list[CandidateGroup] = []
    for message in iterator:
        if message.WhichOneof("part") != "group":
            checks.wrong(f"groups[{len(groups)}]", message.WhichOneof("part") or "nothing", "a group")
            break
        groups.append(checks.nested(candidate_group_from_wire, message.group, f"groups[{len(groups)}]"))
    return checks.passed(
        UpdateRequest(
            parent_version=checks.text("header.parent_version", header.parent_version),
            algorithm=checks.text("header.algorithm", header.algorithm),
            settings=checks.nested(update_settings_from_wire, header.settings, "header.settings"),
            groups=tuple(groups),
            seed=header.seed,
            run_id=header.run_id,
            round=checks.count("header.round", header.round),
        )
    )
