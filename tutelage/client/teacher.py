"""Clients of a teacher, asynchronous and blocking."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence

from tutelage.client.connection import LONG_S, QUICK_S, WORK_S, AsyncConnection, SyncConnection
from tutelage.domain.description import TeacherDescription, UpdateProgress
from tutelage.domain.policy import (
    Candidate,
    ExportedFile,
    Format,
    Policy,
    PolicyDetails,
    PolicyForm,
    Promotion,
    Sampling,
    UpdateRequest,
    UpdateResult,
    UpdateSettings,
)
from tutelage.domain.task import Task
from tutelage.rpc.config import ChannelSettings
from tutelage.v1 import teacher_service_pb2 as pb
from tutelage.v1.teacher_service_pb2_grpc import TeacherServiceStub
from tutelage.wire.checks import INT64_MAX, Checks, fitting
from tutelage.wire.description import teacher_description_from_wire
from tutelage.wire.policy import (
    candidate_from_wire,
    format_to_wire,
    policy_from_wire,
    sampling_to_wire,
    update_request_to_wire,
    update_settings_to_wire,
)
from tutelage.wire.policy_versions import (
    POLICY_FORM_VALUES,
    export_part_from_wire,
    policy_details_from_wire,
    promotion_from_wire,
)
from tutelage.wire.task import task_to_wire
from tutelage.wire.update_result import update_progress_from_wire, update_result_from_wire


def _candidate(message: pb.WriteSelfEditsResponse) -> Candidate:
    return candidate_from_wire(message.candidate)


def _update(message: pb.UpdatePolicyResponse) -> UpdateProgress | UpdateResult:
    if message.WhichOneof("event") == "progress":
        return update_progress_from_wire(message.progress)
    return update_result_from_wire(message.result)


def _policies(message: pb.ListPoliciesResponse) -> tuple[Policy, ...]:
    checks = Checks("")
    return checks.passed(checks.each(policy_from_wire, message.policies, "policies"))


def _write(
    task: Task, format: Format, candidates: int, sampling: Sampling, policy_version: str, seed: int, run_id: str
) -> pb.WriteSelfEditsRequest:
    return pb.WriteSelfEditsRequest(
        task=task_to_wire(task),
        format=format_to_wire(format),
        candidates=fitting("candidates", candidates),
        sampling=sampling_to_wire(sampling),
        policy_version=policy_version,
        seed=fitting("seed", seed, INT64_MAX),
        run_id=run_id,
    )


def _check_writing(
    tasks: Iterable[Task], format: Format, candidates: int, sampling: Sampling
) -> Iterator[pb.CheckWritingRequest]:
    header = pb.CheckWritingHeader(
        format=format_to_wire(format), candidates=fitting("candidates", candidates), sampling=sampling_to_wire(sampling)
    )
    yield pb.CheckWritingRequest(header=header)
    for task in tasks:
        yield pb.CheckWritingRequest(task=task_to_wire(task))


def _answer(prompts: Sequence[str], policy_version: str, max_new_tokens: int) -> pb.AnswerPromptsRequest:
    return pb.AnswerPromptsRequest(
        policy_version=policy_version, prompts=prompts, max_new_tokens=fitting("max_new_tokens", max_new_tokens)
    )


def _answered(message: pb.AnswerPromptsResponse) -> tuple[int, str]:
    return message.index, message.text


def _check(
    algorithm: str, settings: UpdateSettings, sampling: Sampling | None, parent_version: str
) -> pb.CheckUpdateRequest:
    return pb.CheckUpdateRequest(
        algorithm=algorithm,
        settings=update_settings_to_wire(settings),
        sampling=sampling_to_wire(sampling) if sampling else None,
        parent_version=parent_version,
    )


def _promotion(message: pb.ListPoliciesResponse | pb.PromotePolicyResponse) -> Promotion:
    checks = Checks("")
    return checks.passed(checks.required(promotion_from_wire, message, "promotion"))


def _export(version: str, form: PolicyForm) -> pb.ExportPolicyRequest:
    request = pb.ExportPolicyRequest(version=version)
    request.form = POLICY_FORM_VALUES[form]  # type: ignore[assignment]
    return request


def _nothing(message: pb.CheckUpdateResponse | pb.CheckWritingResponse) -> None:
    return None


class TeacherClient(AsyncConnection):
    """A teacher, asynchronously; every method raises the domain's errors."""

    def __init__(self, settings: ChannelSettings) -> None:
        super().__init__(settings)
        self._stub = TeacherServiceStub(self._channel)

    async def describe(self, *, timeout_s: float = QUICK_S) -> TeacherDescription:
        """What it is, its policies and formats."""
        request = pb.TeacherServiceDescribeRequest()
        return await self._call(self._stub.Describe, request, teacher_description_from_wire, timeout_s)

    def write_self_edits(
        self,
        task: Task,
        *,
        format: Format,
        candidates: int,
        sampling: Sampling,
        policy_version: str,
        seed: int,
        run_id: str = "",
        timeout_s: float = WORK_S,
    ) -> AsyncIterator[Candidate]:
        """The candidates of one task as they are parsed."""
        request = _write(task, format, candidates, sampling, policy_version, seed, run_id)
        return self._stream(self._stub.WriteSelfEdits, request, _candidate, timeout_s)

    def answer_prompts(
        self, prompts: Sequence[str], *, policy_version: str, max_new_tokens: int, timeout_s: float = WORK_S
    ) -> AsyncIterator[tuple[int, str]]:
        """Place and text of the first policy's greedy answer to each prompt, as they end; all in one call's batches."""
        request = _answer(prompts, policy_version, max_new_tokens)
        return self._stream(self._stub.AnswerPrompts, request, _answered, timeout_s)

    def update_policy(
        self, request: UpdateRequest, *, timeout_s: float = LONG_S
    ) -> AsyncIterator[UpdateProgress | UpdateResult]:
        """Progress, then the result; the same content updates once."""
        messages = list(update_request_to_wire(request))
        return self._stream(self._stub.UpdatePolicy, messages, _update, timeout_s)

    async def check_writing(
        self,
        tasks: Iterable[Task],
        *,
        format: Format,
        candidates: int,
        sampling: Sampling,
        timeout_s: float = WORK_S,
    ) -> None:
        """InvalidInput names every field that writing for these tasks would be refused for; nothing is sampled."""
        # Before the call: what cannot be sent would end it without a word.
        messages = list(_check_writing(tasks, format, candidates, sampling))
        await self._call(self._stub.CheckWriting, messages, _nothing, timeout_s)

    async def check_update(
        self,
        algorithm: str,
        settings: UpdateSettings,
        sampling: Sampling | None = None,
        *,
        parent_version: str = "",
        timeout_s: float = QUICK_S,
    ) -> None:
        """InvalidInput names every field that an update of the parent with these settings would be refused for."""
        message = _check(algorithm, settings, sampling, parent_version)
        await self._call(self._stub.CheckUpdate, message, _nothing, timeout_s)

    async def list_policies(self, *, timeout_s: float = QUICK_S) -> tuple[Policy, ...]:
        """The policies it keeps."""
        return await self._call(self._stub.ListPolicies, pb.ListPoliciesRequest(), _policies, timeout_s)

    async def promotion(self, *, timeout_s: float = QUICK_S) -> Promotion:
        """Which policy is promoted, and which were."""
        return await self._call(self._stub.ListPolicies, pb.ListPoliciesRequest(), _promotion, timeout_s)

    async def promote_policy(self, expected_version: str, version: str, *, timeout_s: float = QUICK_S) -> Promotion:
        """Makes `version` the promoted one; Conflict when another than `expected_version` is."""
        request = pb.PromotePolicyRequest(expected_version=expected_version, version=version)
        return await self._call(self._stub.PromotePolicy, request, _promotion, timeout_s)

    async def describe_policy(self, version: str, *, timeout_s: float = QUICK_S) -> PolicyDetails:
        """One policy: its lineage, shape and size."""
        request = pb.DescribePolicyRequest(version=version)
        return await self._call(self._stub.DescribePolicy, request, policy_details_from_wire, timeout_s)

    def export_policy(
        self, version: str, form: PolicyForm = PolicyForm.PEFT, *, timeout_s: float = WORK_S
    ) -> AsyncIterator[ExportedFile | bytes]:
        """Each file's head, then its bytes; `tutelage.client.exported.ExportFolder` takes them."""
        return self._stream(self._stub.ExportPolicy, _export(version, form), export_part_from_wire, timeout_s)


class SyncTeacherClient(SyncConnection):
    """A teacher, blocking; the methods of `TeacherClient`."""

    def __init__(self, settings: ChannelSettings) -> None:
        super().__init__(settings)
        self._stub = TeacherServiceStub(self._channel)

    def describe(self, *, timeout_s: float = QUICK_S) -> TeacherDescription:
        """What it is, its policies and formats."""
        request = pb.TeacherServiceDescribeRequest()
        return self._call(self._stub.Describe, request, teacher_description_from_wire, timeout_s)

    def write_self_edits(
        self,
        task: Task,
        *,
        format: Format,
        candidates: int,
        sampling: Sampling,
        policy_version: str,
        seed: int,
        run_id: str = "",
        timeout_s: float = WORK_S,
    ) -> Generator[Candidate, None, None]:
        """The candidates of one task as they are parsed."""
        request = _write(task, format, candidates, sampling, policy_version, seed, run_id)
        return self._stream(self._stub.WriteSelfEdits, request, _candidate, timeout_s)

    def answer_prompts(
        self, prompts: Sequence[str], *, policy_version: str, max_new_tokens: int, timeout_s: float = WORK_S
    ) -> Generator[tuple[int, str], None, None]:
        """Place and text of the first policy's greedy answer to each prompt, as they end; all in one call's batches."""
        request = _answer(prompts, policy_version, max_new_tokens)
        return self._stream(self._stub.AnswerPrompts, request, _answered, timeout_s)

    def update_policy(
        self, request: UpdateRequest, *, timeout_s: float = LONG_S
    ) -> Generator[UpdateProgress | UpdateResult, None, None]:
        """Progress, then the result; the same content updates once."""
        messages = iter(list(update_request_to_wire(request)))
        return self._stream(self._stub.UpdatePolicy, messages, _update, timeout_s)

    def check_writing(
        self,
        tasks: Iterable[Task],
        *,
        format: Format,
        candidates: int,
        sampling: Sampling,
        timeout_s: float = WORK_S,
    ) -> None:
        """InvalidInput names every field that writing for these tasks would be refused for; nothing is sampled."""
        messages = iter(list(_check_writing(tasks, format, candidates, sampling)))
        self._call(self._stub.CheckWriting, messages, _nothing, timeout_s)

    def check_update(
        self,
        algorithm: str,
        settings: UpdateSettings,
        sampling: Sampling | None = None,
        *,
        parent_version: str = "",
        timeout_s: float = QUICK_S,
    ) -> None:
        """InvalidInput names every field that an update of the parent with these settings would be refused for."""
        message = _check(algorithm, settings, sampling, parent_version)
        self._call(self._stub.CheckUpdate, message, _nothing, timeout_s)

    def list_policies(self, *, timeout_s: float = QUICK_S) -> tuple[Policy, ...]:
        """The policies it keeps."""
        return self._call(self._stub.ListPolicies, pb.ListPoliciesRequest(), _policies, timeout_s)

    def promotion(self, *, timeout_s: float = QUICK_S) -> Promotion:
        """Which policy is promoted, and which were."""
        return self._call(self._stub.ListPolicies, pb.ListPoliciesRequest(), _promotion, timeout_s)

    def promote_policy(self, expected_version: str, version: str, *, timeout_s: float = QUICK_S) -> Promotion:
        """Makes `version` the promoted one; Conflict when another than `expected_version` is."""
        request = pb.PromotePolicyRequest(expected_version=expected_version, version=version)
        return self._call(self._stub.PromotePolicy, request, _promotion, timeout_s)

    def describe_policy(self, version: str, *, timeout_s: float = QUICK_S) -> PolicyDetails:
        """One policy: its lineage, shape and size."""
        request = pb.DescribePolicyRequest(version=version)
        return self._call(self._stub.DescribePolicy, request, policy_details_from_wire, timeout_s)

    def export_policy(
        self, version: str, form: PolicyForm = PolicyForm.PEFT, *, timeout_s: float = WORK_S
    ) -> Generator[ExportedFile | bytes, None, None]:
        """Each file's head, then its bytes; `tutelage.client.exported.ExportFolder` takes them."""
        return self._stream(self._stub.ExportPolicy, _export(version, form), export_part_from_wire, timeout_s)
