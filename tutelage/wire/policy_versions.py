"""Policy versions on the wire: described, promoted, exported."""

from __future__ import annotations

from tutelage.domain.policy import ExportedFile, PolicyDetails, PolicyForm, Promotion
from tutelage.v1 import teacher_service_pb2 as pb
from tutelage.wire.checks import INT64_MAX, Checks, fitting, reverse, timestamp
from tutelage.wire.policy import policy_from_wire, policy_to_wire

POLICY_FORMS: dict[int, PolicyForm] = {
    pb.POLICY_FORM_PEFT: PolicyForm.PEFT,
    pb.POLICY_FORM_MERGED: PolicyForm.MERGED,
}
POLICY_FORM_VALUES = reverse(POLICY_FORMS)


def policy_details_to_wire(item: PolicyDetails) -> pb.DescribePolicyResponse:
    """The details as a message."""
    return pb.DescribePolicyResponse(
        policy=policy_to_wire(item.policy),
        rank=item.rank,
        alpha=item.alpha,
        target_modules=item.target_modules,
        bytes=fitting("bytes", item.bytes, INT64_MAX),
        ancestors=item.ancestors,
        promoted=item.promoted,
    )


def policy_details_from_wire(message: pb.DescribePolicyResponse, field: str = "details") -> PolicyDetails:
    """Details that name their policy."""
    checks = Checks(field)
    return checks.passed(
        PolicyDetails(
            policy=checks.required(policy_from_wire, message, "policy"),
            rank=checks.count("rank", message.rank),
            alpha=checks.at_least_zero("alpha", message.alpha),
            target_modules=tuple(message.target_modules),
            bytes=checks.count("bytes", message.bytes),
            ancestors=tuple(message.ancestors),
            promoted=message.promoted,
        )
    )


def promotion_to_wire(item: Promotion) -> pb.Promotion:
    """The promotion as a message."""
    return pb.Promotion(
        version=item.version, previous_versions=item.previous_versions, changed_at=timestamp(item.changed_at)
    )


def promotion_from_wire(message: pb.Promotion, field: str = "promotion") -> Promotion:
    """A promotion with a version and a time."""
    checks = Checks(field)
    return checks.passed(
        Promotion(
            checks.text("version", message.version),
            tuple(message.previous_versions),
            checks.time(message, "changed_at"),
        )
    )


def export_part_to_wire(part: ExportedFile | bytes) -> pb.ExportPolicyResponse:
    """A file's head, or bytes of it, as a message."""
    if isinstance(part, bytes):
        return pb.ExportPolicyResponse(content=part)
    return pb.ExportPolicyResponse(file=pb.ExportedFile(name=part.name, bytes=fitting("bytes", part.bytes, INT64_MAX)))


def export_part_from_wire(message: pb.ExportPolicyResponse, field: str = "part") -> ExportedFile | bytes:
    """A file's head, whose name is a plain one, or bytes."""
    if message.WhichOneof("part") == "content":
        return message.content
    checks = Checks(field)
    name = checks.text("file.name", message.file.name)
    # A name becomes a path on the reader's machine.
    if "/" in name or "\\" in name or name.startswith("."):
        checks.wrong("file.name", name, "a plain file name")
    return checks.passed(ExportedFile(name, checks.count("file.bytes", message.file.bytes)))
