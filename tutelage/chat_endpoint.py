"""A client of any OpenAI-compatible endpoint: one prompt, one reply; asked again while the other side is busy.

What does not get better by asking again (a wrong key, an unknown model, a request that is refused) is told at once.
"""

from __future__ import annotations

import asyncio
import math
import random
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx2
from pydantic import Field

from tutelage.domain.errors import NotFound, PreconditionFailed, Unavailable
from tutelage.rpc.config import read_token
from tutelage.settings import Settings

_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Answers that another attempt may turn into a reply."""
_GIVEN_UP = frozenset({"error", "abort"})
"""Why a reply ended whose writing broke off on the other side, whatever there is of it."""
_LONGEST_WAIT_S = 86_400.0
"""An endpoint that asks for more is as good as gone, and not every number of seconds can be told to others."""
_KEPT_BACK = "content_filter"
"""Why a reply ended of which a filter cut or kept back a part."""


class _KeptBack(PreconditionFailed):
    """Another sample may pass the filter; a deterministic one will not."""


class ChatEndpointSettings(Settings):
    """Where a model answers, and how patiently it is asked."""

    base_url: str = Field(pattern=r"^https?://.+")
    """The API's root, such as `https://api.openai.com/v1` or `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    api_key_file: Path | None = None
    """File with the API key; nothing sends none."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds one attempt may take."""
    attempts: int = Field(default=5, ge=1, le=100)
    """Attempts of one prompt, spread with backoff."""
    backoff_s: float = Field(default=1.0, gt=0)
    """Seconds before the second attempt; doubled after each, at most a minute."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Prompts under way at once."""
    length_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the longest reply; newer models of OpenAI want the second."""
    send_seed: bool = True
    """Whether a seed is sent; some endpoints refuse it."""
    send_sampling: bool = True
    """Whether temperature and top_p are sent; newer models of OpenAI refuse all but their own."""


@dataclass(frozen=True)
class Reply:
    text: str
    ended: bool
    """False when it was cut off at the length limit."""
    prompt_tokens: int
    completion_tokens: int
    """As the endpoint counts them; 0 where it does not."""


class ChatEndpoint:
    """One endpoint; an async context manager."""

    def __init__(self, settings: ChatEndpointSettings, field: str = "endpoint") -> None:
        """InvalidInput for a key file that cannot be read; `field` is what the settings are called where they stand."""
        self._settings = settings
        key = read_token(settings.api_key_file, f"{field}.api_key_file") if settings.api_key_file else ""
        self._client = httpx2.AsyncClient(
            base_url=settings.base_url.rstrip("/") + "/",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=settings.timeout_s,
        )
        self._room = asyncio.Semaphore(settings.concurrency)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def complete(
        self, prompt: str, *, temperature: float, top_p: float, max_tokens: int, seed: int | None = None
    ) -> Reply:
        """The model's reply to `prompt` as a user's message.

        Unavailable when every attempt failed, NotFound for a model that is not there, PreconditionFailed for what
        asking again will not mend, such as a filter that keeps the reply back at the last attempt too.
        """
        settings = self._settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": [{"role": "user", "content": prompt}],
            settings.length_field: max_tokens,
        }
        if settings.send_sampling:
            body |= {"temperature": temperature, "top_p": top_p}
        if seed is not None and settings.send_seed:
            body["seed"] = seed
        async with self._room:
            pause = settings.backoff_s
            for attempt in range(settings.attempts):
                try:
                    return await self._attempt(body)
                except (Unavailable, _KeptBack) as error:
                    if attempt + 1 == settings.attempts:
                        raise
                    # Spread, so that prompts that were refused together do not come back together.
                    spread = pause * random.uniform(0.5, 1.5)  # noqa: S311
                    asked = error.retry_after_s if isinstance(error, Unavailable) else None
                    await asyncio.sleep(min(60.0, max(spread, asked or 0.0)))
                    pause *= 2
        raise AssertionError("there is at least one attempt")

    async def _attempt(self, body: dict[str, Any]) -> Reply:
        where = self._settings.base_url
        try:
            answer = await self._client.post("chat/completions", json=body)
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{where} did not answer within {self._settings.timeout_s:g} s") from error
        except httpx2.HTTPError as error:
            raise Unavailable(f"{where} cannot be reached: {type(error).__name__} {error}") from error
        if answer.status_code in _BUSY:
            raise Unavailable(f"{where} answered {answer.status_code}: {_detail(answer)}", _retry_after(answer))
        if answer.status_code == 404:
            raise NotFound("model", self._settings.model, f"{where} answered 404: {_detail(answer)}")
        if answer.status_code >= 300:
            raise PreconditionFailed(f"{where} answered {answer.status_code}: {_detail(answer)}")
        try:
            return _reply(answer.json(), where)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            raise Unavailable(f"{where} answered with what is no chat completion: {_detail(answer)}") from error


def _reply(content: Any, where: str) -> Reply:
    choice = content["choices"][0]
    reason = choice.get("finish_reason")
    if reason in _GIVEN_UP:
        raise Unavailable(f"{where} broke a reply off, finish_reason {reason}")
    if reason == _KEPT_BACK:
        raise _KeptBack(f"{where} kept a reply back, finish_reason {reason}")
    text = choice["message"]["content"]
    usage = content.get("usage") or {}
    return Reply(
        # A model that only refuses, or only calls tools, has no content: an empty reply, not a fault.
        text="" if text is None else _text(text),
        ended=reason != "length",
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def _text(content: Any) -> str:
    """What a model said; some endpoints send it in parts, thoughts among them. TypeError for anything else."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    if not isinstance(content, str):
        raise TypeError(f"a reply of type {type(content).__name__}")
    return content


def _count(value: Any) -> int:
    """Tokens, as far as what the endpoint says can be a number of them: no reply is worth less for it."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 2**31 else 0


def _detail(answer: httpx2.Response) -> str:
    return " ".join(answer.text.split())[:300]


def _retry_after(answer: httpx2.Response) -> float | None:
    try:
        wait_s = float(answer.headers.get("retry-after", ""))
    except ValueError:
        return None
    return None if math.isnan(wait_s) else min(max(0.0, wait_s), _LONGEST_WAIT_S)
