"""Updates: once each, in a process of their own, leaving the old version in force when interrupted; and gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from prometheus_client import generate_latest

from teacher.algorithms import with_own_rate
from teacher.config import TeacherSettings
from teacher.policies import PolicyStore
from teacher.service import TeacherService
from teacher.updates import Updates, one_device
from tutelage.client import TeacherClient
from tutelage.domain.description import UpdateProgress
from tutelage.domain.errors import DataLoss, InvalidInput, NotFound, PreconditionFailed, Unavailable
from tutelage.domain.policy import (
    CandidateGroup,
    Format,
    Parser,
    Sampling,
    ScoredCandidate,
    UpdateRequest,
    UpdateResult,
    UpdateSettings,
)
from tutelage.domain.task import DocumentTask, Task
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.rpc.config import ChannelSettings
from tutelage.rpc.interceptors import ErrorInterceptor
from tutelage.v1 import policy_pb2

HASH = "h" * 64
LOGGED = ("metrics", "first_loss", "last_loss")
PROMPT, GOOD, BAD = [5, 6, 7, 8], [20, 21, 22, 23, 2], [30, 31, 32]


@pytest.mark.parametrize(
    ("device", "visible", "named", "seen"),
    [
        ("auto", None, "auto", "0"),
        ("cuda", "2,3", "cuda", "2"),
        ("cuda:1", None, "cuda", "1"),
        ("cuda:1", "GPU-a,GPU-b", "cuda", "GPU-b"),
        ("cuda:1", "3", "cuda:1", None),
        ("auto", "", "auto", ""),
        ("cpu", "2,3", "cpu", None),
    ],
)
def test_an_update_sees_the_gpu_of_its_teacher_and_no_other(
    device: str, visible: str | None, named: str, seen: str | None
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert one_device(device, environment) == (named, {} if seen is None else {"CUDA_VISIBLE_DEVICES": seen})


def rollout(parent: str, ids: list[int], tokenizer: str = HASH) -> bytes:
    message = policy_pb2.Rollout(
        policy_version=parent, prompt_ids=PROMPT, completion_ids=ids, tokenizer_hash=tokenizer, ended=True
    )
    return message.SerializeToString()


def request(parent: str, *, reward: float | None = 0.5, epochs: int = 10) -> UpdateRequest:
    group = CandidateGroup(
        "g",
        (ScoredCandidate("good", rollout(parent, GOOD), reward), ScoredCandidate("bad", rollout(parent, BAD), -0.1)),
    )
    settings = UpdateSettings(rank=4, alpha=8.0, learning_rate=2e-2, epochs=epochs, batch_size=2)
    return UpdateRequest(parent, "rest_em", settings, (group,), 7, "run", 1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TeacherSettings:
    folder = tmp_path_factory.mktemp("updates")
    model = str(write_tiny_model(folder / "model"))
    return TeacherSettings(model=model, device="cpu", threads=1, data_dir=folder / "data")


@pytest.fixture(scope="module")
def store(settings: TeacherSettings) -> PolicyStore:
    return PolicyStore(settings.data_dir / "policies", load_model(settings.model, threads=1).revision)


def result_of(events: list[UpdateProgress | UpdateResult]) -> UpdateResult:
    assert isinstance(events[-1], UpdateResult)
    return events[-1]


def log_prob(settings: TeacherSettings, store: PolicyStore, version: str) -> float:
    from peft import PeftModel

    model = load_model(settings.model, threads=1).model
    folder = store.adapter_folder(version)
    if folder is not None:
        model = PeftModel.from_pretrained(model, str(folder)).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([PROMPT + GOOD])).logits.float()[0]
    start = len(PROMPT)
    picked = torch.log_softmax(logits, -1)[torch.arange(start - 1, start - 1 + len(GOOD)), torch.tensor(GOOD)]
    return float(picked.sum())


def test_update_once_raises_the_kept_and_continues(settings: TeacherSettings, store: PolicyStore) -> None:
    updates = Updates(settings, store, HASH)
    asked = request(store.initial.version)
    both: list[list[UpdateProgress | UpdateResult]] = [[], []]
    threads = [threading.Thread(target=lambda into=into: into.extend(updates.update(asked))) for into in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=200)
    first, second = result_of(both[0]), result_of(both[1])
    assert first == second
    assert first.updated
    assert first.kept_candidates == len(first.learnt) == 1
    assert all(weight > 0 for weight in first.learnt.values())
    assert {"loss", "grad_norm", "learning_rate"} <= first.metrics.keys()
    assert first.first_loss is not None
    assert first.last_loss is not None
    assert first.last_loss < first.metrics["loss"] < first.first_loss
    assert any(isinstance(event, UpdateProgress) and event.steps_done for event in both[0])
    assert list(updates.update(asked)) == [first]
    # After a restart the stored result is returned too.
    assert list(Updates(settings, store, HASH).update(asked)) == [first]
    # So is one that was stored before results told what was logged.
    path = settings.data_dir / "updates" / first.update_id / "result.json"
    now = path.read_text()
    without = {name: value for name, value in json.loads(now).items() if name not in LOGGED}
    path.write_text(json.dumps(without))
    old = dataclasses.replace(first, metrics={}, first_loss=None, last_loss=None)
    assert list(Updates(settings, store, HASH).update(asked)) == [old]
    path.write_text(now)
    assert [policy.version for policy in store.list()] == [store.initial.version, first.policy.version]
    assert first.policy.parent_version == store.initial.version
    before, after = (log_prob(settings, store, v) for v in (store.initial.version, first.policy.version))
    assert after > before + 1

    following = result_of(list(updates.update(request(first.policy.version))))
    assert following.policy.parent_version == first.policy.version
    assert log_prob(settings, store, following.policy.version) > after
    wider = dataclasses.replace(asked, parent_version=first.policy.version, settings=UpdateSettings(rank=8))
    with pytest.raises(InvalidInput, match=r"settings.rank.*4"):
        list(updates.update(wider))

    weights = settings.data_dir / "policies" / following.policy.version / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-9])
    with pytest.raises(DataLoss):
        store.get(following.policy.version)
    assert following.policy.version not in [policy.version for policy in store.list()]
    weights.write_bytes(content)


def test_an_update_that_names_no_learning_rate_has_its_algorithms_own(
    settings: TeacherSettings, store: PolicyStore
) -> None:
    own = {name: with_own_rate(name, UpdateSettings()).learning_rate for name in ("rest_em", "grpo", "rloo", "dpo")}
    assert own == {"rest_em": 3e-4, "grpo": 2e-5, "rloo": 2e-5, "dpo": 5e-5}
    assert with_own_rate("grpo", UpdateSettings(learning_rate=0.5)).learning_rate == 0.5
    updates = Updates(settings, store, HASH)
    asked = request(store.initial.version, epochs=1)
    asked = dataclasses.replace(
        asked, algorithm="dpo", settings=dataclasses.replace(asked.settings, learning_rate=None)
    )
    found = result_of(list(updates.update(asked)))
    # The one step of a schedule that falls to 0 after it.
    assert found.metrics["learning_rate"] == pytest.approx(5e-5)
    # It is the same update as one that names it.
    named = dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, learning_rate=5e-5))
    assert list(updates.update(named)) == [found]


def test_nothing_kept_is_the_parent(settings: TeacherSettings, store: PolicyStore) -> None:
    result = result_of(list(Updates(settings, store, HASH).update(request(store.initial.version, reward=None))))
    assert not result.updated
    assert result.policy == store.initial
    assert "no reward is above" in result.message


def test_interrupted_update_leaves_the_old_version(settings: TeacherSettings, store: PolicyStore) -> None:
    updates = Updates(settings, store, HASH)
    before = store.list()
    asked = request(store.initial.version, epochs=100_000)

    def watch() -> None:
        for event in updates.update(asked):
            if isinstance(event, UpdateProgress) and event.steps_done:
                threading.Thread(target=updates.stop).start()

    with pytest.raises(Unavailable):
        watch()
    assert store.list() == before
    assert not list((settings.data_dir / "updates").glob("*/work"))


@pytest.mark.parametrize("algorithm", ["rest_em", "dpo"])
def test_an_update_that_diverges_ends_at_once_and_says_so(
    settings: TeacherSettings, store: PolicyStore, algorithm: str
) -> None:
    asked = request(store.initial.version)
    hot = dataclasses.replace(asked.settings, learning_rate=1e30)
    hopeless = dataclasses.replace(asked, algorithm=algorithm, settings=hot)
    before, steps = store.list(), []

    def watch() -> None:
        for event in Updates(settings, store, HASH).update(hopeless):
            assert isinstance(event, UpdateProgress)
            steps.append(event.steps_done)

    with pytest.raises(InvalidInput, match=r"settings\.learning_rate: '1e\+30'.*diverged"):
        watch()
    assert max(steps) < 3 < hot.epochs
    assert store.list() == before


def test_a_policy_that_was_removed_is_made_anew(settings: TeacherSettings, store: PolicyStore) -> None:
    updates = Updates(settings, store, HASH)
    asked = dataclasses.replace(request(store.initial.version, epochs=1), seed=11)
    first = result_of(list(updates.update(asked)))
    folder = store.adapter_folder(first.policy.version)
    assert folder is not None
    shutil.rmtree(folder)
    second = result_of(list(updates.update(asked)))
    assert second.policy.version == first.policy.version
    assert store.adapter_folder(second.policy.version) == folder
    assert folder.exists()


def test_refusals(settings: TeacherSettings, store: PolicyStore) -> None:
    updates = Updates(settings, store, HASH)
    asked = request(store.initial.version)
    with pytest.raises(NotFound):
        list(updates.update(dataclasses.replace(asked, parent_version="f" * 64)))
    with pytest.raises(InvalidInput, match=r"algorithm.*rest_em"):
        list(updates.update(dataclasses.replace(asked, algorithm="ppo")))
    broken = CandidateGroup("g", (ScoredCandidate("a", b"\xff\xff", 1.0),))
    with pytest.raises(InvalidInput, match=r"groups\[0\].candidates\[0\].rollout"):
        list(updates.update(dataclasses.replace(asked, groups=(broken,))))
    foreign = CandidateGroup("g", (ScoredCandidate("a", rollout(store.initial.version, GOOD, "other"), 1.0),))
    with pytest.raises(PreconditionFailed, match="tokenizer"):
        list(updates.update(dataclasses.replace(asked, groups=(foreign,))))


def test_through_grpc(settings: TeacherSettings, tmp_path: Path) -> None:
    async def talk() -> None:
        service = TeacherService(settings.model_copy(update={"data_dir": tmp_path}))
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        service.register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await service.start()
        assert await service.ready()
        try:
            async with TeacherClient(ChannelSettings(address=f"127.0.0.1:{port}")) as client:
                about = await client.describe()
                assert about.latest_policy_version == about.initial_policy_version
                task = Task("t", DocumentTask("Velm", "Velm is a town."))
                format = Format("own", "{title}: {text}", Parser.LINES)
                common: dict[str, Any] = {"format": format, "sampling": Sampling(max_new_tokens=8), "seed": 1}

                async def written(version: str, candidates: int = 2) -> list[str]:
                    stream = client.write_self_edits(task, candidates=candidates, policy_version=version, **common)
                    found = [candidate async for candidate in stream]
                    assert {candidate.policy_version for candidate in found} == {version}
                    scored = [
                        ScoredCandidate(f"c{candidate.index}", candidate.rollout, float(candidate.index))
                        for candidate in found
                    ]
                    groups.append(CandidateGroup("g", tuple(scored)))
                    return [candidate.text for candidate in sorted(found, key=lambda candidate: candidate.index)]

                groups: list[CandidateGroup] = []
                first = about.initial_policy_version
                before = await written(first)
                asked = dataclasses.replace(request(first), groups=(groups[0],))
                events = [event async for event in client.update_policy(asked)]
                made = result_of(events).policy.version
                assert result_of(events).metrics["grad_norm"] > 0
                assert result_of(events).last_loss is not None
                shown = generate_latest().decode()
                assert 'tutelage_teacher_update_logged{name="grad_norm"}' in shown
                assert [policy.version for policy in await client.list_policies()] == [first, made]
                assert (await client.describe()).latest_policy_version == made
                await written(made)
                # Policy 0 is as it was, with another version loaded beside it.
                assert await written(first) == before
                with pytest.raises(NotFound):
                    await written("f" * 64)
                with pytest.raises(InvalidInput, match="candidates"):
                    await written(first, candidates=0)
                with pytest.raises(InvalidInput, match=r"candidates.*1 to 64"):
                    await client.check_writing([task], format=format, candidates=65, sampling=Sampling())
                assert about.algorithms[:4] == ("rest_em", "grpo", "rloo", "dpo")
                grpo = UpdateSettings(options={"beta": 0.1})
                await client.check_update("grpo", grpo, Sampling())
                await client.check_update("rest_em", UpdateSettings(), Sampling(temperature=0.7))
                await client.check_update("grpo", grpo, Sampling(temperature=0.7))
                with pytest.raises(InvalidInput, match=r"sampling\.temperature.*0.1 or more for grpo"):
                    await client.check_update("grpo", grpo, Sampling(temperature=0))
                with pytest.raises(InvalidInput, match=r"sampling\.top_p.*1 for grpo"):
                    await client.check_update("grpo", grpo, Sampling(temperature=0.7, top_p=0.9))
                await client.check_update("rest_em", UpdateSettings(rank=64, alpha=128), parent_version=first)
                await client.check_update("rest_em", asked.settings, parent_version=made)
                other = dataclasses.replace(asked.settings, rank=asked.settings.rank + 1)
                with pytest.raises(InvalidInput, match=rf"settings\.rank.*{asked.settings.rank}, as in the parent"):
                    await client.check_update("rest_em", other, parent_version=made)
                with pytest.raises(InvalidInput, match=r"settings\.options\.beta.*settings\.rank"):
                    await client.check_update("dpo", UpdateSettings(rank=9999, options={"beta": 0}))
        finally:
            await server.stop(0)
            await service.stop()

    asyncio.run(talk())
