"""Teachers to compare with, which do not learn: the passage alone, self-edits from a file, another model's.

They write the same candidates through the same parsers, so that a run and its report are the same but for who wrote.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from teacher import metrics
from teacher.formats import check_format, render_prompt
from teacher.parsing import Parsed, given_documents, parse_completion
from teacher.readable import readable
from tutelage.chat_endpoint import ChatEndpoint, ChatEndpointSettings, Reply
from tutelage.domain.canonical import content_hash, derived_seed
from tutelage.domain.errors import Exhausted, InvalidInput, NotFound, PreconditionFailed, Unavailable
from tutelage.domain.policy import Candidate, Format, Sampling
from tutelage.domain.self_edit import Rejection, RejectionReason, SelfEdit
from tutelage.domain.task import DocumentTask, Task

T = TypeVar("T")

REMEMBERED = 1024
"""Replies of an endpoint that are kept for calls that are made again."""


class Baseline(ABC):
    """A teacher that does not learn."""

    name: str
    """As its base model is called in reports."""
    revision: str
    """A hash of all that its writing depends on."""

    @property
    def version(self) -> str:
        """Its only policy version."""
        return content_hash({"backend": self.name, "revision": self.revision})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    def check_task(self, task: Task, format: Format, max_new_tokens: int) -> None:
        """InvalidInput for a task that it would not write for."""
        return

    @abstractmethod
    def write(
        self, task: Task, format: Format, candidates: int, sampling: Sampling, seed: int
    ) -> AsyncIterator[Candidate]:
        """Candidates in the order in which they end."""

    async def answer(self, prompts: Sequence[str], max_new_tokens: int) -> AsyncIterator[tuple[int, str]]:
        """Place and text of each prompt's answer; PreconditionFailed from a baseline that reads no prompts."""
        raise PreconditionFailed(f"this teacher ({self.name}) answers no prompts")
        yield

    def _candidate(
        self, index: int, seed: int, format: Format, text: str, parsed: Parsed, tokens: int = 0
    ) -> Candidate:
        metrics.count_parsed(parsed)
        metrics.TOKENS.labels("completion").inc(tokens)
        return Candidate(
            index=index,
            policy_version=self.version,
            format=f"{format.name}: {parsed.chosen_format}" if parsed.chosen_format else format.name,
            text=text.encode("utf-8", "replace").decode("utf-8"),
            result=parsed.result,
            rollout=b"",
            completion_tokens=tokens,
            seed=seed,
            duplicates_removed=parsed.duplicates_removed,
        )


class PassageOnly(Baseline):
    """What training on the document alone gives: every candidate is the task's own content, as the format holds it."""

    name = "passage"
    revision = "1"

    async def write(
        self, task: Task, format: Format, candidates: int, sampling: Sampling, seed: int
    ) -> AsyncIterator[Candidate]:
        """The same candidate each time; equal ones share their evaluations."""
        check_format(format)
        documents = tuple(given_documents(task, format.parser))
        empty = Rejection(RejectionReason.EMPTY, message="the task holds nothing to study")
        result: SelfEdit | Rejection = SelfEdit(documents) if documents else empty
        text = task.content.text if isinstance(task.content, DocumentTask) else ""
        for index in range(candidates):
            yield self._candidate(index, derived_seed(seed, index), format, text, Parsed(result))


class Replay(Baseline):
    """Self-edits that were written before, by task id; JSON lines of `{"task_id": ..., "text": ...}`."""

    def __init__(self, path: Path) -> None:
        """InvalidInput names the file and line of what is wrong."""
        self.name = f"replay of {path.name}"
        self._path = path
        self._texts = _read_replay(path)
        self.revision = content_hash(self._texts)

    def check_task(self, task: Task, format: Format, max_new_tokens: int) -> None:
        """InvalidInput for a task of which the file has no text."""
        if task.id not in self._texts:
            allowed = f"one of the {len(self._texts)} tasks that {self._path.name} has self-edits of"
            raise InvalidInput.of("task.id", task.id, allowed)

    async def write(
        self, task: Task, format: Format, candidates: int, sampling: Sampling, seed: int
    ) -> AsyncIterator[Candidate]:
        """The file's texts of the task in order, from the first again when more are asked for; NotFound for none."""
        check_format(format)
        texts = self._texts.get(task.id)
        if not texts:
            raise NotFound("task", task.id, f"{self._path.name} has self-edits of {len(self._texts)} other tasks")
        for index in range(candidates):
            text = texts[index % len(texts)]
            parsed = await asyncio.to_thread(parse_completion, text, format, task)
            yield self._candidate(index, derived_seed(seed, index), format, text, parsed)


class EndpointTeacher(Baseline):
    """The model behind an OpenAI-compatible endpoint, asked with the format's own prompt."""

    def __init__(self, settings: ChatEndpointSettings) -> None:
        self.name = f"{settings.model} at {settings.base_url}"
        self.revision = content_hash({"base_url": settings.base_url, "model": settings.model})
        self._settings = settings
        self._stack = AsyncExitStack()
        self._endpoint: ChatEndpoint | None = None
        self._replies: OrderedDict[tuple[str, Sampling, int], Reply] = OrderedDict()

    async def __aenter__(self) -> Self:
        self._endpoint = await self._stack.enter_async_context(ChatEndpoint(self._settings))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def write(
        self, task: Task, format: Format, candidates: int, sampling: Sampling, seed: int
    ) -> AsyncIterator[Candidate]:
        """One request a candidate. Unavailable and others as `ChatEndpoint.complete`: a fault is no candidate."""
        check_format(format)
        prompt = render_prompt(format, task)

        async def one(index: int) -> Candidate:
            own = derived_seed(seed, index)
            reply = await self._reply(prompt, sampling, own)
            # The beginning of a reply that small writers are given is left out: a chat model begins its own.
            parsed = await asyncio.to_thread(parse_completion, reply.text, format, task, ended=reply.ended)
            return self._candidate(index, own, format, reply.text, parsed, reply.completion_tokens)

        async for candidate in _as_they_end([one(index) for index in range(candidates)]):
            yield candidate

    async def answer(self, prompts: Sequence[str], max_new_tokens: int) -> AsyncIterator[tuple[int, str]]:
        """One request a prompt, at temperature 0; faults as in `write`."""
        sampling = Sampling(temperature=0, top_p=1, max_new_tokens=max_new_tokens)

        async def one(place: int, prompt: str) -> tuple[int, str]:
            return place, (await self._reply(readable(prompt)[0], sampling, 0)).text.strip()

        async for answered in _as_they_end([one(*each) for each in enumerate(prompts)]):
            yield answered

    async def _reply(self, prompt: str, sampling: Sampling, seed: int) -> Reply:
        endpoint = self._endpoint
        assert endpoint is not None, "used outside of its context"
        key = (prompt, sampling, seed)
        reply = self._replies.get(key)
        if reply is None:
            reply = await endpoint.complete(
                prompt,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_new_tokens,
                seed=seed,
            )
            metrics.TOKENS.labels("prompt").inc(reply.prompt_tokens)
            # A call that fails at one reply is made again: the others are not paid for twice.
            self._replies[key] = reply
            if len(self._replies) > REMEMBERED:
                self._replies.popitem(last=False)
        return reply


async def _as_they_end(calls: Sequence[Coroutine[Any, Any, T]]) -> AsyncIterator[T]:
    """Results as they come; a call that is refused for now is raised when the others have ended."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        fault: Exception | None = None
        for done in asyncio.as_completed(tasks):
            try:
                yield await done
            except (Unavailable, Exhausted) as error:
                # The others go on: what they write need not be asked for again.
                fault = error
        if fault is not None:
            raise fault
    finally:
        for item in tasks:
            item.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _read_replay(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        # Not splitlines: U+2028 and its kin may stand inside a JSON string.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput.of("replay_file", path, f"a readable file of JSON lines ({error})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            raise InvalidInput.of(where, line[:100], "a JSON object") from None
        wanted = '{"task_id": "...", "text": "..."}'
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("task_id", "text")):
            raise InvalidInput.of(where, line[:100], f"an object like {wanted}")
        found.setdefault(item["task_id"], []).append(item["text"])
    if not found:
        raise InvalidInput.of("replay_file", path, "a file with at least one self-edit")
    return found
