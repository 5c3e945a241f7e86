"""What services say they are and keep, on the wire."""

from __future__ import annotations

from tutelage.domain.description import Adapter, StudentDescription, TeacherDescription
from tutelage.v1 import student_service_pb2 as student_pb
from tutelage.v1 import teacher_service_pb2 as teacher_pb
from tutelage.wire.checks import Checks, timestamp
from tutelage.wire.evaluation import bounds_from_wire, bounds_to_wire
from tutelage.wire.policy import format_from_wire, format_to_wire


def student_description_to_wire(item: StudentDescription) -> student_pb.StudentServiceDescribeResponse:
    """The description as a message."""
    return student_pb.StudentServiceDescribeResponse(
        base_model=item.base_model,
        base_revision=item.base_revision,
        quantisation=item.quantisation,
        device=item.device,
        compute_dtype=item.compute_dtype,
        parameters=item.parameters,
        slots=item.slots,
        free_slots=item.free_slots,
        queued=item.queued,
        bounds=bounds_to_wire(item.bounds),
        graders=item.graders,
        engine_revision=item.engine_revision,
        deterministic=item.deterministic,
        context_length=item.context_length,
        version=item.version,
    )


def student_description_from_wire(
    message: student_pb.StudentServiceDescribeResponse, field: str = "student"
) -> StudentDescription:
    """A description that names its model and engine."""
    checks = Checks(field)
    return checks.passed(
        StudentDescription(
            base_model=checks.text("base_model", message.base_model),
            base_revision=checks.text("base_revision", message.base_revision),
            quantisation=checks.text("quantisation", message.quantisation),
            device=message.device,
            compute_dtype=message.compute_dtype,
            parameters=checks.count("parameters", message.parameters),
            slots=checks.count("slots", message.slots),
            free_slots=checks.count("free_slots", message.free_slots),
            queued=checks.count("queued", message.queued),
            bounds=checks.required(bounds_from_wire, message, "bounds"),
            graders=tuple(message.graders),
            engine_revision=checks.text("engine_revision", message.engine_revision),
            deterministic=message.deterministic,
            context_length=checks.count("context_length", message.context_length),
            version=message.version,
        )
    )


def teacher_description_to_wire(item: TeacherDescription) -> teacher_pb.TeacherServiceDescribeResponse:
    """The description as a message."""
    return teacher_pb.TeacherServiceDescribeResponse(
        base_model=item.base_model,
        base_revision=item.base_revision,
        quantisation=item.quantisation,
        device=item.device,
        initial_policy_version=item.initial_policy_version,
        latest_policy_version=item.latest_policy_version,
        tokenizer_hash=item.tokenizer_hash,
        context_length=item.context_length,
        formats=[format_to_wire(entry) for entry in item.formats],
        algorithms=item.algorithms,
        version=item.version,
        promoted_policy_version=item.promoted_policy_version,
    )


def teacher_description_from_wire(
    message: teacher_pb.TeacherServiceDescribeResponse, field: str = "teacher"
) -> TeacherDescription:
    """A description that names its model and policies."""
    checks = Checks(field)
    return checks.passed(
        TeacherDescription(
            base_model=checks.text("base_model", message.base_model),
            base_revision=checks.text("base_revision", message.base_revision),
            quantisation=checks.text("quantisation", message.quantisation),
            device=message.device,
            initial_policy_version=checks.text("initial_policy_version", message.initial_policy_version),
            latest_policy_version=checks.text("latest_policy_version", message.latest_policy_version),
            tokenizer_hash=message.tokenizer_hash,
            context_length=checks.count("context_length", message.context_length),
            formats=checks.each(format_from_wire, message.formats, "formats"),
            algorithms=tuple(message.algorithms),
            version=message.version,
            promoted_policy_version=message.promoted_policy_version,
        )
    )


def adapter_to_wire(adapter: Adapter) -> student_pb.Adapter:
    """The adapter's entry as a message."""
    return student_pb.Adapter(
        version=adapter.version,
        parent_version=adapter.parent_version,
        evaluation_id=adapter.evaluation_id,
        rank=adapter.rank,
        bytes=adapter.bytes,
        created_at=timestamp(adapter.created_at),
    )


def adapter_from_wire(message: student_pb.Adapter, field: str = "adapter") -> Adapter:
    """An entry with a version and a time."""
    checks = Checks(field)
    return checks.passed(
        Adapter(
            version=checks.text("version", message.version),
            parent_version=message.parent_version,
            evaluation_id=message.evaluation_id,
            rank=checks.count("rank", message.rank),
            bytes=checks.count("bytes", message.bytes),
            created_at=checks.time(message, "created_at"),
        )
    )
