"""The servicer of a teacher that does not learn: the same calls as `TeacherService`, so that a run cannot tell.

UpdatePolicy checks what it is sent and answers that the policy stays; policy 0 is the only one. No torch is loaded.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import grpc

import tutelage
from teacher import metrics
from teacher.algorithms import algorithm_names, settings_violations
from teacher.baselines import Baseline, EndpointTeacher, PassageOnly, Replay
from teacher.config import TeacherSettings
from teacher.formats import unreadable_in
from teacher.own_formats import all_formats
from teacher.update_request import check_request, update_id
from teacher.writing_check import check_writing
from tutelage.domain.description import TeacherDescription
from tutelage.domain.errors import InvalidInput, NotFound, PreconditionFailed
from tutelage.domain.policy import Format, Policy, PolicyDetails, Promotion, Sampling, UpdateResult
from tutelage.rpc.logging import bind
from tutelage.v1 import teacher_service_pb2 as pb
from tutelage.v1 import teacher_service_pb2_grpc as pb_grpc
from tutelage.wire.description import teacher_description_to_wire
from tutelage.wire.policy import (
    candidate_to_wire,
    format_from_wire,
    policy_to_wire,
    sampling_from_wire,
    update_request_from_wire,
    update_settings_from_wire,
)
from tutelage.wire.policy_versions import policy_details_to_wire, promotion_to_wire
from tutelage.wire.task import task_from_wire
from tutelage.wire.update_result import update_result_to_wire


def baseline_of(settings: TeacherSettings) -> Baseline:
    """The baseline that settings name; InvalidInput for a file that cannot be replayed."""
    if settings.backend == "replay" and settings.replay_file is not None:
        return Replay(settings.replay_file)
    if settings.backend == "endpoint" and settings.endpoint is not None:
        return EndpointTeacher(settings.endpoint)
    return PassageOnly()


class BaselineService(pb_grpc.TeacherServiceServicer):
    """A teacher with one policy, which stays as it is."""

    name = "teacher"
    grpc_service_names: Sequence[str] = ("tutelage.v1.TeacherService",)

    def __init__(self, settings: TeacherSettings, baseline: Baseline) -> None:
        self._settings = settings
        self._baseline = baseline
        self._ready = False
        self._policy = Policy(baseline.version, "", "", 0, "", "", "", datetime.now(UTC))

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer to a server."""
        pb_grpc.add_TeacherServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call, unused-ignore]

    async def start(self) -> None:
        """Open what the baseline needs."""
        await self._baseline.__aenter__()
        metrics.show_policy(self._policy.version, self._baseline.name)
        self._ready = True

    async def ready(self) -> bool:
        """Whether it can write."""
        return self._ready

    async def stop(self) -> None:
        """Close what was opened."""
        self._ready = False
        await self._baseline.__aexit__(None, None, None)

    async def Describe(
        self, request: pb.TeacherServiceDescribeRequest, context: grpc.aio.ServicerContext
    ) -> pb.TeacherServiceDescribeResponse:
        """What writes here; the algorithms are those whose settings a run may name."""
        version = self._policy.version
        description = TeacherDescription(
            base_model=self._baseline.name,
            base_revision=self._baseline.revision,
            quantisation="none",
            device="",
            initial_policy_version=version,
            latest_policy_version=version,
            tokenizer_hash="",
            context_length=0,
            formats=all_formats(),
            algorithms=algorithm_names(),
            version=tutelage.__version__,
            promoted_policy_version=version,
        )
        return teacher_description_to_wire(description)

    async def CheckWriting(
        self, request_iterator: AsyncIterator[pb.CheckWritingRequest], context: grpc.aio.ServicerContext
    ) -> pb.CheckWritingResponse:
        """Refuses what WriteSelfEdits would refuse; how long a prompt may be is not known here."""

        def check(format: Format, candidates: int, sampling: Sampling) -> None:
            self._check(candidates)

        return await check_writing(request_iterator, check, self._baseline.check_task)

    async def WriteSelfEdits(
        self, request: pb.WriteSelfEditsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WriteSelfEditsResponse]:
        """Candidates as they end."""
        self._known(request.policy_version)
        self._check(request.candidates)
        task, format = task_from_wire(request.task), format_from_wire(request.format)
        sampling = sampling_from_wire(request.sampling)
        started = time.monotonic()
        metrics.TASK_REPAIRS.inc(unreadable_in(task))
        with bind(run_id=request.run_id):
            async for candidate in self._baseline.write(task, format, request.candidates, sampling, request.seed):
                yield pb.WriteSelfEditsResponse(candidate=candidate_to_wire(candidate))
        metrics.WRITE_SECONDS.observe(time.monotonic() - started)

    async def AnswerPrompts(
        self, request: pb.AnswerPromptsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.AnswerPromptsResponse]:
        """Answers as they end; FAILED_PRECONDITION from what reads no prompts."""
        self._known(request.policy_version)
        if not 1 <= request.max_new_tokens <= self._settings.max_new_tokens:
            raise InvalidInput.of("max_new_tokens", request.max_new_tokens, f"1 to {self._settings.max_new_tokens}")
        async for index, text in self._baseline.answer(request.prompts, request.max_new_tokens):
            yield pb.AnswerPromptsResponse(index=index, text=text)

    async def UpdatePolicy(
        self, request_iterator: AsyncIterator[pb.UpdatePolicyRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.UpdatePolicyResponse]:
        """The policy as it was."""
        request = update_request_from_wire([message async for message in request_iterator])
        check_request(request, self._settings.max_rank)
        self._known(request.parent_version)
        scored = [item.reward is not None for group in request.groups for item in group.candidates]
        unscored = scored.count(False)
        metrics.UPDATES.labels("unchanged").inc()
        metrics.count_lessons(0, scored.count(True), 0, unscored)
        message = f"this teacher ({self._baseline.name}) does not learn"
        result = UpdateResult(self._policy, update_id(request), False, 0, 0.0, message, unscored)
        yield pb.UpdatePolicyResponse(result=update_result_to_wire(result))

    async def CheckUpdate(
        self, request: pb.CheckUpdateRequest, context: grpc.aio.ServicerContext
    ) -> pb.CheckUpdateResponse:
        """Refuses settings that no teacher would take, so that a run can change its teacher and nothing else."""
        settings = update_settings_from_wire(request.settings)
        if wrong := settings_violations(request.algorithm, settings, self._settings.max_rank):
            raise InvalidInput(wrong)
        return pb.CheckUpdateResponse()

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListPoliciesResponse:
        """The one policy."""
        promotion = Promotion(self._policy.version, (), self._policy.created_at)
        return pb.ListPoliciesResponse(policies=[policy_to_wire(self._policy)], promotion=promotion_to_wire(promotion))

    async def DescribePolicy(
        self, request: pb.DescribePolicyRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribePolicyResponse:
        """The one policy, which has no weights here."""
        self._known(request.version)
        return policy_details_to_wire(PolicyDetails(self._policy, 0, 0.0, (), 0, (), True))

    async def PromotePolicy(
        self, request: pb.PromotePolicyRequest, context: grpc.aio.ServicerContext
    ) -> pb.PromotePolicyResponse:
        """There is nothing else to promote."""
        raise PreconditionFailed(f"this teacher ({self._baseline.name}) has one policy, which is promoted")

    async def ExportPolicy(
        self, request: pb.ExportPolicyRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ExportPolicyResponse]:
        """There is nothing to export."""
        raise PreconditionFailed(f"this teacher ({self._baseline.name}) has no weights to export")
        yield

    def _check(self, candidates: int) -> None:
        if not 1 <= candidates <= self._settings.max_candidates:
            raise InvalidInput.of("candidates", candidates, f"1 to {self._settings.max_candidates}")

    def _known(self, version: str) -> None:
        if version != self._policy.version:
            raise NotFound("policy", version, "ListPolicies tells which are")
