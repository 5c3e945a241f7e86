"""Teachers that do not learn, through the same calls: the passage, a file, and a model behind a real HTTP server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import ValidationError

from teacher.baseline_service import BaselineService, baseline_of
from teacher.config import TeacherSettings
from tutelage.chat_endpoint import ChatEndpoint, ChatEndpointSettings, Reply
from tutelage.client import TeacherClient
from tutelage.domain.errors import InvalidInput, NotFound, PreconditionFailed, Unavailable
from tutelage.domain.policy import (
    Candidate,
    CandidateGroup,
    Format,
    Parser,
    Sampling,
    ScoredCandidate,
    UpdateRequest,
    UpdateResult,
    UpdateSettings,
)
from tutelage.domain.self_edit import SelfEdit, TextDocument
from tutelage.domain.task import DocumentTask, Task
from tutelage.rpc.config import ChannelSettings
from tutelage.rpc.interceptors import ErrorInterceptor

TASK = Task("velm", DocumentTask("Velm", "Velm is a town on the Orr. It has three mills."))
LINES = Format("own", "Notes on {title}: {text}", Parser.LINES)


class Endpoint:
    """An OpenAI-compatible server on loopback that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.answers: list[tuple[int, Any, dict[str, str]]] = []
        self.stalled = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                endpoint.asked.append(body)
                endpoint.keys.append(self.headers["authorization"])
                status, content, headers = endpoint.answers.pop(0) if endpoint.answers else endpoint.reply(body)
                if status == 0:
                    endpoint.stalled.wait(10)
                    return
                sent = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(sent)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *_: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def reply(self, body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        text = f"Velm stands on the Orr.\nVelm has {body.get('seed', 3)} mills.\nVelm is"
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        return 200, {"choices": [choice], "usage": {"prompt_tokens": 30, "completion_tokens": 20}}, {}

    def close(self) -> None:
        self.stalled.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def settings_of(endpoint: Endpoint, **more: Any) -> ChatEndpointSettings:
    return ChatEndpointSettings(base_url=endpoint.url, model="gpt-4.1", backoff_s=0.01, **{"timeout_s": 5, **more})


def served(settings: TeacherSettings, use: Callable[[TeacherClient], Awaitable[None]]) -> None:
    """Runs `use` with a client of a real server of these settings."""

    async def talk() -> None:
        service = BaselineService(settings, baseline_of(settings))
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        service.register(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await service.start()
        try:
            async with TeacherClient(ChannelSettings(address=f"127.0.0.1:{port}")) as client:
                await use(client)
        finally:
            await server.stop(0)
            await service.stop()

    asyncio.run(talk())


async def written(client: TeacherClient, count: int, task: Task = TASK) -> list[Candidate]:
    version = (await client.describe()).initial_policy_version
    stream = client.write_self_edits(
        task, format=LINES, candidates=count, sampling=Sampling(max_new_tokens=64), policy_version=version, seed=5
    )
    return sorted([item async for item in stream], key=lambda item: item.index)


async def answered(client: TeacherClient, prompts: list[str]) -> dict[int, str]:
    version = (await client.describe()).initial_policy_version
    stream = client.answer_prompts(prompts, policy_version=version, max_new_tokens=16)
    return {place: text async for place, text in stream}


def texts(candidate: Candidate) -> list[str]:
    assert isinstance(candidate.result, SelfEdit)
    return [document.text for document in candidate.result.documents if isinstance(document, TextDocument)]


def test_passage_only_writes_the_passage_and_does_not_learn() -> None:
    async def use(client: TeacherClient) -> None:
        about = await client.describe()
        assert about.base_model == "passage"
        assert "rest_em" in about.algorithms
        first, second = await written(client, 2)
        assert first.result == second.result
        assert len(texts(first)) == 1
        assert TASK.content.text in texts(first)[0]  # type: ignore[union-attr]
        group = CandidateGroup("g", (ScoredCandidate("a", first.rollout, 0.5),))
        asked = UpdateRequest(about.initial_policy_version, "grpo", UpdateSettings(), (group,), 1, "run", 1)
        events = [event async for event in client.update_policy(asked)]
        assert isinstance(events[-1], UpdateResult)
        assert not events[-1].updated
        assert events[-1].policy.version == about.initial_policy_version
        assert "does not learn" in events[-1].message
        assert [item.version for item in await client.list_policies()] == [about.initial_policy_version]
        assert (await client.promotion()).version == about.promoted_policy_version
        assert (await client.describe_policy(about.initial_policy_version)).rank == 0
        with pytest.raises(PreconditionFailed):
            await client.promote_policy(about.initial_policy_version, "x")
        with pytest.raises(PreconditionFailed):
            _ = [part async for part in client.export_policy(about.initial_policy_version)]
        with pytest.raises(PreconditionFailed, match="answers no prompts"):
            await answered(client, ["Who?"])
        with pytest.raises(InvalidInput, match="algorithm"):
            await client.check_update("ppo", UpdateSettings())
        with pytest.raises(InvalidInput, match="candidates"):
            await written(client, 0)
        await client.check_writing([TASK], format=LINES, candidates=2, sampling=Sampling())
        with pytest.raises(InvalidInput, match=r"candidates.*1 to 64"):
            await client.check_writing([TASK], format=LINES, candidates=65, sampling=Sampling())

    served(TeacherSettings(backend="passage"), use)


def test_replay_writes_what_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    lines = [{"task_id": "velm", "text": f"Velm has {count} mills."} for count in ("three", "four")]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")

    async def use(client: TeacherClient) -> None:
        found = await written(client, 3)
        assert [item.text for item in found] == [lines[0]["text"], lines[1]["text"], lines[0]["text"]]
        assert "three" in texts(found[0])[1]
        with pytest.raises(NotFound, match=r"edits\.jsonl"):
            await written(client, 1, replace(TASK, id="other"))

    served(TeacherSettings(backend="replay", replay_file=path), use)
    version = baseline_of(TeacherSettings(backend="replay", replay_file=path)).version
    path.write_text(json.dumps(lines[0]))
    assert baseline_of(TeacherSettings(backend="replay", replay_file=path)).version != version
    for content, match in (('{"text": "a"}', "line 1"), ("{", "line 1"), ("", "at least one")):
        path.write_text(content)
        with pytest.raises(InvalidInput, match=match):
            baseline_of(TeacherSettings(backend="replay", replay_file=path))


def test_a_model_behind_an_endpoint_answers_prompts(endpoint: Endpoint) -> None:
    def reply(body: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        text = f" to {body['messages'][0]['content']} at {body['temperature']:g} "
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}, {}

    endpoint.reply = reply  # type: ignore[method-assign]

    async def use(client: TeacherClient) -> None:
        wanted = {0: "to Who? at 0", 1: "to < |im_end|>Why? at 0"}
        assert await answered(client, ["Who?", "<|im_end|>Why?"]) == wanted
        endpoint.answers = [(503, "busy", {})] * 2
        with pytest.raises(Unavailable):
            await answered(client, ["Who?", "Where?"])
        assert (await answered(client, ["Who?", "Where?"]))[1] == "to Where? at 0"
        # Nothing that was answered is asked again.
        told = [each["messages"][0]["content"] for each in endpoint.asked]
        assert (told.count("Who?"), told.count("Where?")) == (1, 3)
        with pytest.raises(InvalidInput, match="max_new_tokens"):
            _ = [
                each
                async for each in client.answer_prompts(["?"], policy_version=await first(client), max_new_tokens=0)
            ]
        with pytest.raises(NotFound, match="policy"):
            _ = [each async for each in client.answer_prompts(["?"], policy_version="x", max_new_tokens=8)]

    async def first(client: TeacherClient) -> str:
        return (await client.describe()).initial_policy_version

    served(TeacherSettings(backend="endpoint", endpoint=settings_of(endpoint, attempts=2)), use)


def test_a_model_behind_an_endpoint(endpoint: Endpoint, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")

    async def use(client: TeacherClient) -> None:
        found = await written(client, 3)
        assert len({item.seed for item in found}) == 3
        assert [item.completion_tokens for item in found] == [20, 20, 20]
        # The last line was cut off at the limit: it is no note.
        assert [text.rpartition("\n")[2] for text in texts(found[0])[1:]] == [
            "Velm stands on the Orr.",
            f"Velm has {found[0].seed} mills.",
        ]
        # Asked again, nothing is paid for twice.
        assert await written(client, 3) == found
        assert len(endpoint.asked) == 3

    served(TeacherSettings(backend="endpoint", endpoint=settings_of(endpoint, api_key_file=key)), use)
    assert set(endpoint.keys) == {"Bearer secret"}
    asked = endpoint.asked[0]
    assert asked["model"] == "gpt-4.1"
    assert asked["messages"] == [{"role": "user", "content": f"Notes on Velm: {TASK.content.text}"}]  # type: ignore[union-attr]
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (1.0, 1.0, 64)


def test_one_that_fails_does_not_cost_the_others(endpoint: Endpoint) -> None:
    own = TeacherSettings(backend="endpoint", endpoint=settings_of(endpoint, attempts=1, concurrency=1))
    endpoint.answers = [endpoint.reply({}), (503, "overloaded", {})]

    async def use(client: TeacherClient) -> None:
        with pytest.raises(Unavailable, match="503"):
            await written(client, 3)
        assert len(endpoint.asked) == 3
        assert len(await written(client, 3)) == 3
        assert len(endpoint.asked) == 4

    served(own, use)


def asked(endpoint: Endpoint, **more: Any) -> Reply:
    async def ask() -> Reply:
        async with ChatEndpoint(settings_of(endpoint, **more)) as client:
            return await client.complete("Hello", temperature=0.5, top_p=0.9, max_tokens=7, seed=1)

    return asyncio.run(ask())


def test_what_may_get_better_is_asked_again(endpoint: Endpoint) -> None:
    good = endpoint.reply({})
    endpoint.answers = [(429, "slow down", {"retry-after": "0.05"}), (500, "oops", {}), (200, "no json", {}), good]
    assert asked(endpoint).text.startswith("Velm")
    assert len(endpoint.asked) == 4
    endpoint.answers = [(503, "", {})] * 2
    with pytest.raises(Unavailable, match="503"):
        asked(endpoint, attempts=2)
    endpoint.answers = [(0, "", {})]
    with pytest.raises(Unavailable, match=r"within 0\.2 s"):
        asked(endpoint, attempts=1, timeout_s=0.2)


def test_what_will_not_get_better_is_told_at_once(endpoint: Endpoint) -> None:
    for status, kind, match in ((401, PreconditionFailed, "bad key"), (404, NotFound, "gpt-4.1")):
        endpoint.asked.clear()
        endpoint.answers = [(status, {"error": {"message": "bad key"}}, {})]
        with pytest.raises(kind, match=match):
            asked(endpoint)
        assert len(endpoint.asked) == 1
    gone = settings_of(endpoint, attempts=1).model_copy(update={"base_url": "http://127.0.0.1:9"})

    async def ask() -> None:
        async with ChatEndpoint(gone) as client:
            await client.complete("Hello", temperature=0, top_p=1, max_tokens=1)

    with pytest.raises(Unavailable, match="cannot be reached"):
        asyncio.run(ask())


def test_a_reply_that_broke_off_on_the_other_side_is_no_reply(endpoint: Endpoint) -> None:
    good = endpoint.reply({})

    def broken(reason: str, text: str | None) -> tuple[int, Any, dict[str, str]]:
        return 200, {"choices": [{"message": {"content": text}, "finish_reason": reason}]}, {}

    endpoint.answers = [broken("error", ""), broken("abort", "Velm"), broken("content_filter", None), good]
    assert asked(endpoint).text.startswith("Velm stands")
    endpoint.answers = [broken("error", "Velm is")]
    with pytest.raises(Unavailable, match="error"):
        asked(endpoint, attempts=1)
    # One that is kept back each time is not waited for.
    endpoint.answers = [broken("content_filter", "")] * 2
    with pytest.raises(PreconditionFailed, match="content_filter"):
        asked(endpoint, attempts=2)
    assert not endpoint.answers


def test_other_shapes_of_requests_and_replies(endpoint: Endpoint) -> None:
    endpoint.answers = [(200, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, {})]
    assert asked(endpoint, length_field="max_completion_tokens", send_seed=False) == Reply("", True, 0, 0)
    assert endpoint.asked[0]["max_completion_tokens"] == 7
    assert not {"max_tokens", "seed"} & set(endpoint.asked[0])
    assert {"temperature", "top_p"} <= set(endpoint.asked[0])
    endpoint.answers = [(200, {"choices": [{"message": {"content": "Yes"}, "finish_reason": "stop"}]}, {})]
    assert asked(endpoint, send_sampling=False).text == "Yes"
    assert not {"temperature", "top_p"} & set(endpoint.asked[1])
    assert endpoint.keys == [None, None]


def test_settings_say_what_a_backend_needs(tmp_path: Path) -> None:
    for backend, field in (("replay", "replay_file"), ("endpoint", "endpoint")):
        with pytest.raises(ValidationError, match=field):
            TeacherSettings.model_validate({"backend": backend})
    with pytest.raises(InvalidInput, match="replay_file"):
        baseline_of(TeacherSettings(backend="replay", replay_file=tmp_path / "nothing"))


def test_no_torch_is_loaded() -> None:
    probe = "import sys, teacher.baseline_service; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
