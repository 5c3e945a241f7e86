"""The teacher's servicer: from the wire to the domain, one call, and back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

import tutelage
from teacher import metrics
from teacher.algorithms import algorithm_names, find_algorithm, settings_violations
from teacher.config import TeacherSettings
from teacher.engine import Writer
from teacher.leftovers import clear_leftovers
from teacher.own_formats import all_formats
from teacher.policies import PolicyStore, policy_to_json
from teacher.policy_export import describe_policy, export_policy
from teacher.promotion import Promotions
from teacher.threaded import iterate_in_thread
from teacher.update_request import sampling_violations
from teacher.updates import Updates
from teacher.writing_check import check_writing
from tutelage.domain.description import TeacherDescription
from tutelage.domain.errors import InvalidInput, Unavailable
from tutelage.domain.policy import ExportedFile, Policy, UpdateResult
from tutelage.models.loading import load_model
from tutelage.rpc.logging import bind
from tutelage.v1 import teacher_service_pb2 as pb
from tutelage.v1 import teacher_service_pb2_grpc as pb_grpc
from tutelage.wire.checks import Checks
from tutelage.wire.description import teacher_description_to_wire
from tutelage.wire.policy import (
    candidate_to_wire,
    format_from_wire,
    policy_to_wire,
    sampling_from_wire,
    update_request_from_wire,
    update_settings_from_wire,
)
from tutelage.wire.policy_versions import (
    POLICY_FORMS,
    export_part_to_wire,
    policy_details_to_wire,
    promotion_to_wire,
)
from tutelage.wire.task import task_from_wire
from tutelage.wire.update_result import update_progress_to_wire, update_result_to_wire

EXPORTS = 2
"""Exports whose next part is made at the same time: merging takes minutes and a whole model's memory."""


@dataclass(frozen=True)
class _Parts:
    writer: Writer
    policies: PolicyStore
    updates: Updates
    promotions: Promotions


class TeacherService(pb_grpc.TeacherServiceServicer):
    """One teacher: a base model, its policy versions, writing and updates."""

    name = "teacher"
    grpc_service_names: Sequence[str] = ("tutelage.v1.TeacherService",)

    def __init__(self, settings: TeacherSettings) -> None:
        self._settings = settings
        self._parts: _Parts | None = None
        # Threads of their own: those that all else is answered by are few.
        self._exporting = ThreadPoolExecutor(EXPORTS, thread_name_prefix="export")

    def register(self, server: grpc.aio.Server) -> None:
        """Add the servicer to a server."""
        pb_grpc.add_TeacherServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call, unused-ignore]

    async def start(self) -> None:
        """Load the base model and open the stores."""
        self._parts = await asyncio.to_thread(self._open)

    async def ready(self) -> bool:
        """Whether the model is loaded, and computes."""
        return self._parts is not None and await asyncio.to_thread(self._parts.writer.healthy)

    async def stop(self) -> None:
        """End a running update."""
        self._exporting.shutdown(wait=False, cancel_futures=True)
        if self._parts is not None:
            await asyncio.to_thread(self._parts.updates.stop)

    async def Describe(
        self, request: pb.TeacherServiceDescribeRequest, context: grpc.aio.ServicerContext
    ) -> pb.TeacherServiceDescribeResponse:
        """What this teacher is, and its policy versions of note."""
        parts = self._loaded()
        writer, policies, loaded = parts.writer, parts.policies, parts.writer.loaded
        description = TeacherDescription(
            base_model=loaded.name,
            base_revision=loaded.revision,
            quantisation=loaded.quantisation,
            device=loaded.device,
            initial_policy_version=policies.initial.version,
            latest_policy_version=(await asyncio.to_thread(policies.list))[-1].version,
            tokenizer_hash=writer.tokenizer_hash,
            context_length=loaded.context_length,
            formats=all_formats(),
            algorithms=algorithm_names(),
            version=tutelage.__version__,
            promoted_policy_version=await asyncio.to_thread(parts.promotions.usable),
        )
        return teacher_description_to_wire(description)

    async def CheckWriting(
        self, request_iterator: AsyncIterator[pb.CheckWritingRequest], context: grpc.aio.ServicerContext
    ) -> pb.CheckWritingResponse:
        """Refuses what WriteSelfEdits would refuse."""
        writer = self._loaded().writer
        return await check_writing(request_iterator, writer.check, writer.check_task)

    async def WriteSelfEdits(
        self, request: pb.WriteSelfEditsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WriteSelfEditsResponse]:
        """Candidates as they end."""
        writer = self._loaded().writer
        task = task_from_wire(request.task)
        format = format_from_wire(request.format)
        sampling = sampling_from_wire(request.sampling)
        count, version, seed = request.candidates, request.policy_version, request.seed
        with bind(run_id=request.run_id):
            async for candidate in iterate_in_thread(
                lambda gone: writer.write(task, format, count, sampling, version, seed, cancelled=gone)
            ):
                yield pb.WriteSelfEditsResponse(candidate=candidate_to_wire(candidate))

    async def AnswerPrompts(
        self, request: pb.AnswerPromptsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.AnswerPromptsResponse]:
        """Answers of the first policy as they end."""
        writer = self._loaded().writer
        prompts, version, tokens = tuple(request.prompts), request.policy_version, request.max_new_tokens
        async for index, text in iterate_in_thread(
            lambda gone: writer.answer(prompts, version, tokens, cancelled=gone)
        ):
            yield pb.AnswerPromptsResponse(index=index, text=text)

    async def UpdatePolicy(
        self, request_iterator: AsyncIterator[pb.UpdatePolicyRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.UpdatePolicyResponse]:
        """Progress, then the result; the update goes on when its watcher leaves."""
        updates = self._loaded().updates
        request = update_request_from_wire([message async for message in request_iterator])
        with bind(run_id=request.run_id):
            async for event in iterate_in_thread(lambda gone: updates.update(request, cancelled=gone)):
                if isinstance(event, UpdateResult):
                    yield pb.UpdatePolicyResponse(result=update_result_to_wire(event))
                else:
                    yield pb.UpdatePolicyResponse(progress=update_progress_to_wire(event))

    async def CheckUpdate(
        self, request: pb.CheckUpdateRequest, context: grpc.aio.ServicerContext
    ) -> pb.CheckUpdateResponse:
        """Refuses what UpdatePolicy would refuse after the candidates are paid for."""
        settings = update_settings_from_wire(request.settings)
        wrong = settings_violations(request.algorithm, settings, self._settings.max_rank)
        if not wrong and request.HasField("sampling"):
            sampling = sampling_from_wire(request.sampling)
            algorithm = find_algorithm(request.algorithm)
            wrong = sampling_violations(algorithm, request.algorithm, sampling.temperature, sampling.top_p)
        if request.parent_version:
            wrong += self._loaded().updates.shape_violations(request.parent_version, settings)
        if wrong:
            raise InvalidInput(wrong)
        return pb.CheckUpdateResponse()

    async def ListPolicies(
        self, request: pb.ListPoliciesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListPoliciesResponse:
        """All policy versions, oldest first, and which is promoted."""
        parts = self._loaded()
        listed: list[Policy] = await asyncio.to_thread(parts.policies.list)
        promotion = await asyncio.to_thread(parts.promotions.current)
        return pb.ListPoliciesResponse(
            policies=[policy_to_wire(policy) for policy in listed], promotion=promotion_to_wire(promotion)
        )

    async def DescribePolicy(
        self, request: pb.DescribePolicyRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribePolicyResponse:
        """One version: its lineage, shape and size."""
        parts = self._loaded()
        promoted = (await asyncio.to_thread(parts.promotions.current)).version
        return policy_details_to_wire(
            await asyncio.to_thread(describe_policy, parts.policies, request.version, promoted)
        )

    async def PromotePolicy(
        self, request: pb.PromotePolicyRequest, context: grpc.aio.ServicerContext
    ) -> pb.PromotePolicyResponse:
        """Make a version the recommended one."""
        promote = self._loaded().promotions.promote
        made = await asyncio.to_thread(promote, request.expected_version, request.version)
        return pb.PromotePolicyResponse(promotion=promotion_to_wire(made))

    async def ExportPolicy(
        self, request: pb.ExportPolicyRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.ExportPolicyResponse]:
        """The files of a version, a part at a time: no more is read than the client takes."""
        policies = self._loaded().policies
        checks = Checks("")
        form = checks.passed(checks.enum("form", request.form, POLICY_FORMS))
        details = await asyncio.to_thread(describe_policy, policies, request.version, "")
        card = {"base_model": self._settings.model, "policy": policy_to_json(details.policy)}
        gone, turn = threading.Event(), threading.Lock()
        parts = export_policy(self._settings, policies, request.version, form, card, cancelled=gone.is_set)

        def following() -> ExportedFile | bytes | None:
            with turn:
                return next(parts, None)

        def close() -> None:
            # A reader that goes does not end the thread that makes its next part.
            with turn:
                parts.close()

        try:
            loop = asyncio.get_running_loop()
            while (part := await loop.run_in_executor(self._exporting, following)) is not None:
                yield export_part_to_wire(part)
        finally:
            gone.set()
            await asyncio.to_thread(close)

    def _open(self) -> _Parts:
        settings = self._settings
        loaded = load_model(
            settings.model,
            quantisation=settings.quantisation,
            device=settings.device,
            compute_dtype=settings.compute_dtype,
            threads=settings.threads,
            cache_dir=settings.cache_dir,
            dequantise=settings.dequantise,
        )
        # The folder is this process's own (`alone_in`); what others began in it they cannot end any more.
        clear_leftovers(settings.data_dir)
        policies = PolicyStore(settings.data_dir / "policies", loaded.revision)
        writer = Writer(loaded, policies, settings)
        metrics.show_policy(policies.list()[-1].version, loaded.name)
        vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])
        updates = Updates(settings, policies, writer.tokenizer_hash, vocabulary)
        promotions = Promotions(settings.data_dir / "promoted.json", policies)
        # What is wrong with it is told at the start too, not first by a run.
        promotions.usable()
        return _Parts(writer, policies, updates, promotions)

    def _loaded(self) -> _Parts:
        if self._parts is None:
            raise Unavailable("the teacher is still loading its model", retry_after_s=5)
        return self._parts
