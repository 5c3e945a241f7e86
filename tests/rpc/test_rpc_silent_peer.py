"""A connection whose bytes vanish without a word is noticed by pings, on both ends, long before any deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tutelage.client import StudentClient
from tutelage.domain.description import EvaluationProgress
from tutelage.domain.errors import Unavailable
from tutelage.domain.evaluation import EvaluationKey
from tutelage.domain.task import Question
from tutelage.rpc.config import ChannelSettings

if TYPE_CHECKING:
    from tests.rpc.conftest import Serving

KEEPALIVE: dict[str, Any] = {"keepalive_s": 1.0, "keepalive_timeout_s": 1.0}
NOTICED_S = 12.0
"""A ping, its timeout, and the wait of a busy machine."""
DEADLINE_S = 60.0


class Proxy:
    """Passes bytes on between client and server until it is told to swallow them."""

    def __init__(self) -> None:
        self.swallowing = False
        self.address = ""
        self._pipes: set[asyncio.Task[None]] = set()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.swallowing:
                writer.write(data)
                await writer.drain()
        # Nor would a cable that is cut pass on that the other end closed.
        if not self.swallowing:
            writer.close()

    @asynccontextmanager
    async def before(self, target: str) -> AsyncIterator[None]:
        host, _, port = target.rpartition(":")

        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            self._pipes |= {
                asyncio.create_task(self._pass(reader, far_writer)),
                asyncio.create_task(self._pass(far_reader, writer)),
            }

        server = await asyncio.start_server(meet, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield
        finally:
            server.close()
            for pipe in self._pipes:
                pipe.cancel()
            await asyncio.gather(*self._pipes, return_exceptions=True)


def test_both_ends_notice_that_the_other_is_gone(serving: Serving, key: EvaluationKey, question: Question) -> None:
    async def body() -> None:
        proxy = Proxy()
        async with (
            serving(**KEEPALIVE) as (service, ready),
            proxy.before(ready["address"]),
            StudentClient(ChannelSettings(address=proxy.address, **KEEPALIVE)) as client,
        ):
            stream = client.evaluate(key, timeout_s=DEADLINE_S)
            assert isinstance(await anext(stream), EvaluationProgress)
            # A quiet stream is no dead one: pings that are answered keep it.
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(4)
            assert not waiting.done()
            assert not service.cancelled.is_set()
            proxy.swallowing = True
            begun = time.monotonic()
            with pytest.raises(Unavailable, match=proxy.address):
                await asyncio.wait_for(waiting, NOTICED_S)
            # The server ends the work of a client that vanished.
            await asyncio.wait_for(service.cancelled.wait(), NOTICED_S)
            assert time.monotonic() - begun < NOTICED_S
            # The way is free again, and the same client goes on by a new connection.
            proxy.swallowing = False
            async with asyncio.timeout(NOTICED_S):
                while True:
                    try:
                        assert len(await client.answer([question], adapter_version="", timeout_s=5)) == 1
                        break
                    except Unavailable:
                        await asyncio.sleep(0.2)

    asyncio.run(asyncio.wait_for(body(), DEADLINE_S))


def test_without_frequent_pings_nothing_is_noticed_in_that_time(serving: Serving, key: EvaluationKey) -> None:
    """So that the test above cannot pass for another reason."""

    async def body() -> None:
        proxy = Proxy()
        async with (
            serving() as (service, ready),
            proxy.before(ready["address"]),
            StudentClient(ChannelSettings(address=proxy.address)) as client,
        ):
            stream = client.evaluate(key, timeout_s=DEADLINE_S)
            await anext(stream)
            proxy.swallowing = True
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(anext(stream))), 5)
            assert not service.cancelled.is_set()

    asyncio.run(asyncio.wait_for(body(), DEADLINE_S))
