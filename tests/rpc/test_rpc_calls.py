"""What a real client gets back from a call: answers, streams, and every error as it was raised."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from tests.rpc.example_service import FAULTS, KEY, QUESTION, run, running
from tutelage.client import OrchestratorClient, StudentClient, SyncStudentClient, TeacherClient
from tutelage.domain.description import EvaluationPhase, EvaluationProgress
from tutelage.domain.errors import Exhausted, FieldViolation, InvalidInput, NotFound, TutelageError, Unavailable
from tutelage.domain.evaluation import Answer
from tutelage.domain.self_edit import Rejection, RejectionReason
from tutelage.domain.task import Question
from tutelage.rpc.config import ChannelSettings
from tutelage.v1 import student_service_pb2 as pb
from tutelage.v1 import student_service_pb2_grpc as pb_grpc
from tutelage.wire.task import question_to_wire


@pytest.mark.parametrize("name", [name for name in FAULTS if name != "bug"])
def test_domain_error_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            with pytest.raises(type(FAULTS[name])) as caught:
                await client.get_evaluation(name)
            sent = FAULTS[name]
            assert type(caught.value) is type(sent)
            assert str(caught.value) == str(sent)
            for attribute in ("violations", "kind", "name", "retry_after_s"):
                assert getattr(caught.value, attribute, None) == getattr(sent, attribute, None)

    run(scenario())


@pytest.mark.parametrize("error", [InvalidInput.of("a\ud800", "\ud800", "\ud800"), NotFound("evaluation", "\ud800")])
def test_half_a_character_in_an_error_hides_neither_its_kind_nor_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """YAML may spell one; a message cannot hold it."""
    monkeypatch.setitem(FAULTS, "half", error)

    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            with pytest.raises(type(error)) as caught:
                await client.get_evaluation("half")
            if isinstance(caught.value, InvalidInput):
                assert caught.value.violations == (FieldViolation("a?", "?", "?"),)

    run(scenario())


def test_unknown_error_is_hidden_and_own_abort_passes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            with pytest.raises(TutelageError, match="INTERNAL: internal error") as caught:
                await client.get_evaluation("bug")
            assert "secret" not in str(caught.value)
            with pytest.raises(TutelageError, match="OUT_OF_RANGE: own words"):
                await client.get_evaluation("aborted")

    run(scenario())


def test_stream_ends_with_outcome_or_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            events = [event async for event in client.evaluate(KEY, timeout_s=10)]
            assert events == [
                EvaluationProgress(EvaluationPhase.TRAINING, 1, 2, 0.5),
                Rejection(RejectionReason.EMPTY, message="nothing to learn"),
            ]
            failing = client.evaluate(KEY, run_id="fail", timeout_s=10)
            assert isinstance(await anext(failing), EvaluationProgress)
            with pytest.raises(Exhausted) as caught:
                await anext(failing)
            assert caught.value.retry_after_s == 2.5

    run(scenario())


def test_leaving_a_stream_cancels_the_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            running(tmp_path) as (service, ready),
            StudentClient(ChannelSettings(address=ready["address"])) as client,
        ):
            stream = client.evaluate(KEY, run_id="wait", timeout_s=30)
            assert isinstance(await anext(stream), EvaluationProgress)
            await stream.aclose()  # type: ignore[attr-defined]
            await asyncio.wait_for(service.servicer.cancelled.wait(), 10)

    run(scenario())


def test_deadline_is_unavailable_with_the_address(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (_, ready), StudentClient(ChannelSettings(address=ready["address"])) as client:
            with pytest.raises(Unavailable, match=ready["address"]):
                _ = [event async for event in client.evaluate(KEY, run_id="wait", timeout_s=0.5)]

    run(scenario())


def test_a_service_of_another_kind_is_named_by_its_address(tmp_path: Path) -> None:
    """Ports are easily mixed up; gRPC itself says no more than "Method not found!"."""

    async def scenario() -> None:
        async with running(tmp_path) as (_, ready):
            settings = ChannelSettings(address=ready["address"])
            async with OrchestratorClient(settings) as orchestrator, TeacherClient(settings) as teacher:
                for call in (orchestrator.list_runs, teacher.list_policies):
                    with pytest.raises(TutelageError) as caught:
                        await call()
                    told = f"{ready['address']} has no such call: another kind of service, or another version"
                    assert str(caught.value) == told

    run(scenario())


def test_sync_client_does_the_same(tmp_path: Path) -> None:
    def blocking(address: str) -> None:
        with SyncStudentClient(ChannelSettings(address=address)) as client:
            assert client.answer([QUESTION], adapter_version="") == (Answer("1", "Who?", {"exact": 1.0}),)
            assert len(list(client.evaluate(KEY, timeout_s=10))) == 2
            with pytest.raises(NotFound, match="start it first"):
                client.get_evaluation("not_found")

    async def scenario() -> None:
        async with running(tmp_path) as (_, ready):
            await asyncio.to_thread(blocking, ready["address"])

    run(scenario())


def test_message_over_the_limit_is_refused_and_the_server_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            running(tmp_path, max_message_mib=1) as (_, ready),
            StudentClient(ChannelSettings(address=ready["address"])) as client,
        ):
            big = [Question("1", "x" * 2**21, "a")]
            with pytest.raises(InvalidInput) as caught:
                await client.answer(big, adapter_version="")
            (violation,) = caught.value.violations
            assert violation.field == "message"
            assert int(violation.value.split()[0]) > 2**21
            assert f"at most {2**20} bytes" in violation.allowed
            assert len(await client.answer([QUESTION], adapter_version="")) == 1
            # On the wire it is the code that every gRPC client knows.
            async with grpc.aio.insecure_channel(ready["address"]) as channel:
                request = pb.AnswerRequest(questions=[question_to_wire(item) for item in big])
                with pytest.raises(grpc.aio.AioRpcError) as raw:
                    await pb_grpc.StudentServiceStub(channel).Answer(request, timeout=10)
            assert raw.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            # The limit of the client's own end is told alike, before anything is sent.
            async with StudentClient(ChannelSettings(address=ready["address"], max_message_mib=1)) as small:
                with pytest.raises(InvalidInput, match="message"):
                    await small.answer(big, adapter_version="")

    run(scenario())
