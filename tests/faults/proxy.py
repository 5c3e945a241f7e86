"""A TCP proxy that cuts, delays, refuses and swallows what goes through it; it runs in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class Proxy:
    """Listens on a free loopback port and passes everything on to `target` (host:port, or the path of a socket)."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._delay_s = 0.0
        self._refuses = False
        self._silent_until = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._dead: set[asyncio.StreamWriter] = set()
        """Those whose connection passes nothing on any more, not even its end."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Breaks every connection that is open now."""
        self._loop.call_soon_threadsafe(self._break)

    def delay(self, seconds: float) -> None:
        """From now on what goes through is held back for so long."""
        self._delay_s = seconds

    def refuse(self, refuses: bool) -> None:
        """Whether whoever comes from now on is turned away."""
        self._refuses = refuses

    def stall(self, seconds: float, *, reset: bool = False) -> None:
        """For so long nothing comes through, without a word; returns at once.

        Connections that were open, and those that are opened meanwhile, stay dead for good, as behind a router that
        forgot them: either end has to find out by itself. With `reset` they are told when the time is over.
        """
        self._loop.call_soon_threadsafe(self._fall_silent, seconds, reset)

    def close(self) -> None:
        """Ends the thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        self._break()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    def _break(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _fall_silent(self, seconds: float, reset: bool) -> None:
        self._dead |= self._writers
        self._silent_until = max(self._silent_until, self._loop.time() + seconds)
        if reset:
            self._loop.call_later(seconds, self._bury)

    def _bury(self) -> None:
        for writer in list(self._dead):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        writers = {writer}
        self._writers.add(writer)
        try:
            # A cancelled task of a stream's server is taken for a fault by asyncio.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                if self._loop.time() < self._silent_until:
                    self._dead.add(writer)
                    await self._swallow(reader)
                    return
                there_reader, there_writer = await self._reach()
                writers.add(there_writer)
                self._writers.add(there_writer)
                await asyncio.gather(self._pass(reader, there_writer), self._pass(there_reader, writer))
        finally:
            for each in writers:
                each.transport.abort()
            self._writers -= writers
            self._dead -= writers

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.startswith("/"):
            return await asyncio.open_unix_connection(self._target)
        host, _, port = self._target.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        while await reader.read(65536):
            pass

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                if writer not in self._dead:
                    writer.write(chunk)
                    await writer.drain()
        if writer in self._dead:
            return
        with contextlib.suppress(OSError):
            writer.close()
            await writer.wait_closed()
