"""What an endpoint sends is untrusted: a reply, or a fault that is named, whatever numbers and shapes are in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from teacher.config import TeacherSettings
from tests.teacher.test_teacher_baselines import Endpoint, asked, served, settings_of, texts, written
from tutelage.client import TeacherClient
from tutelage.domain.errors import Unavailable


@pytest.fixture
def server() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def reply(content: Any, usage: str = "null") -> str:
    return f'{{"choices": [{{"message": {{"content": {content}}}, "finish_reason": "stop"}}], "usage": {usage}}}'


def test_counts_that_are_none_cost_no_reply(server: Endpoint) -> None:
    usages = ['{"prompt_tokens": -5, "completion_tokens": 1e999}', '{"prompt_tokens": "x", "completion_tokens": 1e12}']
    for usage in usages:
        server.answers = [(200, reply('"Yes"', usage), {})]
        found = asked(server, attempts=1)
        assert (found.text, found.prompt_tokens, found.completion_tokens) == ("Yes", 0, 0)

    async def use(client: TeacherClient) -> None:
        server.answers = [(200, reply('"Velm has three mills."', usage), {}) for usage in usages]
        assert [texts(each)[1:] for each in await written(client, 2)] == [["Velm\nVelm has three mills."]] * 2

    served(TeacherSettings(backend="endpoint", endpoint=settings_of(server, attempts=1)), use)


def test_a_reply_in_parts_is_what_it_says_and_not_what_it_thinks(server: Endpoint) -> None:
    parts = '[{"type": "thinking", "thinking": []}, {"type": "text", "text": "Ye"}, {"type": "text", "text": "s"}]'
    server.answers = [(200, reply(parts), {})]
    assert asked(server, attempts=1).text == "Yes"


@pytest.mark.parametrize("sent", ["[" * 100_000, reply('{"text": "Yes"}'), reply("7"), reply('["Yes"]'), "7"])
def test_what_is_no_reply_is_told_and_asked_again(server: Endpoint, sent: str) -> None:
    server.answers = [(200, sent, {}), (200, reply('"Yes"'), {})]
    assert asked(server).text == "Yes"
    server.answers = [(200, sent, {})]
    with pytest.raises(Unavailable, match="no chat completion"):
        asked(server, attempts=1)


@pytest.mark.parametrize("wait", ["inf", "1e300", "nan", "-1", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_whatever_wait_an_endpoint_asks_for_its_own_words_arrive(server: Endpoint, wait: str) -> None:
    server.answers = [(429, "slow down", {"retry-after": wait})]

    async def use(client: TeacherClient) -> None:
        with pytest.raises(Unavailable, match="slow down") as caught:
            await written(client, 1)
        assert 0 <= (caught.value.retry_after_s or 0) <= 86_400

    served(TeacherSettings(backend="endpoint", endpoint=settings_of(server, attempts=1)), use)
