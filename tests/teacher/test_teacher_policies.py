"""Policy versions through the teacher's own server and the command line: described, promoted, compared, exported."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

import teacher.service as service_module
from teacher.config import TeacherSettings
from teacher.policies import PolicyStore
from teacher.service import EXPORTS, TeacherService
from tutelage.cli.main import app
from tutelage.client import SyncTeacherClient
from tutelage.client.exported import ExportFolder
from tutelage.domain.errors import AlreadyExists, Conflict, DataLoss, InvalidInput, NotFound, PreconditionFailed
from tutelage.domain.policy import ExportedFile, Policy, PolicyForm
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.rpc.config import ChannelSettings
from tutelage.rpc.interceptors import ErrorInterceptor
from tutelage.v1 import teacher_service_pb2 as pb
from tutelage.v1.teacher_service_pb2_grpc import TeacherServiceStub

IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TeacherSettings:
    folder = tmp_path_factory.mktemp("policies")
    model = str(write_tiny_model(folder / "model"))
    return TeacherSettings(model=model, device="cpu", threads=1, data_dir=folder / "data", quantisation="none")


@pytest.fixture(scope="module")
def versions(settings: TeacherSettings, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Policy 0, its child and its grandchild, with LoRAs that change what is written."""
    store = PolicyStore(settings.data_dir / "policies", load_model(settings.model, threads=1).revision)
    found = [store.initial.version]
    for number in (1, 2):
        torch.manual_seed(number)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
        folder = tmp_path_factory.mktemp("adapter")
        get_peft_model(load_model(settings.model, quantisation="none").model, config).save_pretrained(folder)
        lineage = Policy("", found[-1], "run", number, "grpo", "d" * 64, f"u{number}", datetime.now(UTC))
        found.append(store.add(folder, lineage).version)
    return found


@pytest.fixture(scope="module")
def address(settings: TeacherSettings, versions: list[str]) -> Iterator[str]:
    """A real server, on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    service = TeacherService(settings)

    async def serve() -> tuple[Any, int]:
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        service.register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await service.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(serve(), loop).result(120)
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(20)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(20)


@pytest.fixture
def client(address: str) -> Iterator[SyncTeacherClient]:
    with SyncTeacherClient(ChannelSettings(address=address)) as opened:
        yield opened


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["policies", *arguments, "--teacher", address])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=IDS).logits
        return found.float()


def test_described_with_lineage(client: SyncTeacherClient, versions: list[str]) -> None:
    details = client.describe_policy(versions[2])
    assert (details.rank, details.alpha, details.ancestors) == (4, 8.0, (versions[1], versions[0]))
    assert details.bytes > 1000
    assert "q_proj" in details.target_modules
    first = client.describe_policy(versions[0])
    assert (first.rank, first.ancestors, first.bytes) == (0, (), 0)
    with pytest.raises(NotFound):
        client.describe_policy("f" * 64)


def test_promoted_and_rolled_back(client: SyncTeacherClient, address: str, versions: list[str]) -> None:
    assert client.promotion().version == versions[0] == client.describe().promoted_policy_version
    nothing = run(address, "rollback")
    assert isinstance(nothing.exception, PreconditionFailed)
    assert client.promote_policy(versions[0], versions[1]).previous_versions == (versions[0],)
    with pytest.raises(Conflict):
        client.promote_policy(versions[0], versions[2])
    with pytest.raises(NotFound):
        client.promote_policy(versions[1], "f" * 64)
    assert versions[2][:12] in run(address, "promote", versions[2][:10]).stdout
    assert client.describe_policy(versions[2]).promoted
    assert client.describe().promoted_policy_version == versions[2]
    assert versions[1][:12] in run(address, "rollback").stdout
    back = client.promotion()
    assert (back.version, back.previous_versions) == (versions[1], (versions[0],))
    assert f"{versions[1][:12]} *" in run(address, "list").stdout
    assert json.loads(run(address, "show", "promoted", "--json").stdout)["promoted"] is True
    client.promote_policy(versions[1], versions[0])


def test_a_damaged_record_of_what_is_promoted_stops_nothing_else_and_is_mended(
    client: SyncTeacherClient, address: str, settings: TeacherSettings, versions: list[str]
) -> None:
    path = settings.data_dir / "promoted.json"
    path.write_text("{")
    assert client.describe().promoted_policy_version == ""
    assert client.describe().latest_policy_version == versions[2]
    assert len(client.list_policies()) == 3
    assert json.loads(run(address, "list", "--json").stdout)["promotion"]["version"] not in versions
    assert isinstance(run(address, "show", "promoted").exception, NotFound)
    assert run(address, "promote", versions[1]).exit_code == 0
    assert client.describe().promoted_policy_version == versions[1]
    path.unlink()


def test_two_versions_write_about_the_same_document(address: str, versions: list[str], tmp_path: Path) -> None:
    document = tmp_path / "velm.txt"
    document.write_text("Velm is a town on the Orr.")
    shown = run(address, "diff", "initial", versions[1][:8], "--document", str(document), "--max-new-tokens", "24")
    assert shown.exit_code == 0, shown.exception
    assert versions[0][:12] in shown.stdout
    assert versions[1][:12] in shown.stdout
    command = ("diff", "initial", "latest", "--document", str(document), "--max-new-tokens", "24", "--json")
    found = json.loads(run(address, *command).stdout)
    assert list(found) == [versions[0], versions[2]]
    assert found[versions[0]][0]["text"] != found[versions[2]][0]["text"]
    assert found[versions[0]][0]["seed"] == found[versions[2]][0]["seed"]
    assert json.loads(run(address, *command).stdout) == found
    same = run(address, "diff", "latest", versions[2][:8], "--document", str(document))
    assert isinstance(same.exception, InvalidInput)
    assert "both are" in str(same.exception)
    wrong = run(address, "diff", "initial", "zzz", "--document", str(document))
    assert isinstance(wrong.exception, InvalidInput)
    assert versions[1][:12] in str(wrong.exception)


def test_exported_for_peft_and_merged(
    address: str, client: SyncTeacherClient, settings: TeacherSettings, versions: list[str], tmp_path: Path
) -> None:
    for name, form in (("lora", "peft"), ("whole", "merged")):
        done = run(address, "export", versions[2], str(tmp_path / name), "--as", form)
        assert done.exit_code == 0, done.exception
    base = AutoModelForCausalLM.from_pretrained(settings.model).eval()
    untouched = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, str(tmp_path / "lora")).eval())
    merged = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval())
    assert (adapted - untouched).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "whole")("Velm").input_ids
    assert json.loads((tmp_path / "lora" / "policy.json").read_text())["policy"]["parent_version"] == versions[1]
    with pytest.raises(PreconditionFailed, match="no LoRA"):
        list(client.export_policy(versions[0]))
    heads = [part.name for part in client.export_policy(versions[0], PolicyForm.MERGED) if not isinstance(part, bytes)]
    assert "model.safetensors" in heads
    # The teacher keeps nothing of an export.
    assert not list(settings.data_dir.glob(".export-*"))


@pytest.mark.parametrize("form", [pb.POLICY_FORM_UNSPECIFIED, 99])
def test_a_form_that_the_teacher_does_not_know_is_exported_as_no_other(
    address: str, versions: list[str], form: int
) -> None:
    """99 is a newer client's."""
    request = pb.ExportPolicyRequest(version=versions[2], form=form)  # type: ignore[arg-type]
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(TeacherServiceStub(channel).ExportPolicy(request, timeout=60))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").endswith("allowed: one of peft, merged")


def test_while_many_exports_are_merged_all_else_is_answered(
    address: str, client: SyncTeacherClient, versions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging takes minutes; an orchestrator that a teacher does not answer in seconds takes it for away."""
    begun, gate = threading.Semaphore(0), threading.Event()

    def merging(*_: Any, **__: Any) -> Iterator[bytes]:
        begun.release()
        gate.wait(120)
        yield b"whole"

    monkeypatch.setattr(service_module, "export_policy", merging)
    request = pb.ExportPolicyRequest(version=versions[2], form=pb.POLICY_FORM_MERGED)
    with grpc.insecure_channel(address) as channel:
        calls = [TeacherServiceStub(channel).ExportPolicy(request, timeout=120) for _ in range(40)]
        assert all(begun.acquire(timeout=60) for _ in range(EXPORTS))
        assert client.describe(timeout_s=5).latest_policy_version == versions[2]
        assert not begun.acquire(blocking=False)
        # Whoever leaves is not merged for.
        for call in calls[EXPORTS + 1 :]:
            call.cancel()
        gate.set()
        assert [[part.content for part in call] for call in calls[: EXPORTS + 1]] == [[b"whole"]] * (EXPORTS + 1)


def test_an_export_is_whole_or_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "made"

    def cut_off() -> None:
        with ExportFolder(folder) as writer:
            writer.write(ExportedFile("a", 3))
            writer.write(b"ab")

    with pytest.raises(DataLoss, match="a of the export"):
        cut_off()
    assert list(tmp_path.iterdir()) == []
    with ExportFolder(folder) as writer:
        writer.write(ExportedFile("a", 3))
        writer.write(b"ab")
        writer.write(b"c")
        writer.write(ExportedFile("empty", 0))
    assert (folder / "a").read_bytes() == b"abc"
    assert list(tmp_path.iterdir()) == [folder]
    with pytest.raises(AlreadyExists):
        ExportFolder(folder)
