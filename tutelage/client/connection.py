"""A connection to one service: calls that decode their answers and raise the domain's errors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from tutelage.domain.errors import InvalidInput, TutelageError
from tutelage.rpc.channel import call_metadata, open_channel, open_sync_channel
from tutelage.rpc.config import ChannelSettings
from tutelage.rpc.errors import from_rpc_error

T = TypeVar("T")

QUICK_S = 30.0
"""Default deadline of calls that only look something up."""
WORK_S = 600.0
"""Default deadline of calls that run a model for a while."""
LONG_S = 24 * 3600.0
"""Default deadline of calls that train or watch."""


def _decoded(decode: Callable[[Any], T], message: Any, address: str) -> T:
    try:
        return decode(message)
    except InvalidInput as error:
        # The caller's input was fine: it is the answer that is not.
        raise TutelageError(f"{address} answered with what it must not: {error}") from None


class AsyncConnection:
    """Base of the asynchronous clients; an async context manager."""

    def __init__(self, settings: ChannelSettings) -> None:
        self.address = settings.address
        self._metadata = call_metadata(settings)
        self._channel = open_channel(settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; calls still open are cancelled."""
        await self._channel.close(None)

    async def _call(self, method: Any, request: Any, decode: Callable[[Any], T], timeout_s: float) -> T:
        """One answer to a request or to an iterator of requests."""
        try:
            message = await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None
        return _decoded(decode, message, self.address)

    async def _stream(
        self, method: Any, request: Any, decode: Callable[[Any], T], timeout_s: float
    ) -> AsyncIterator[T]:
        """The answers as they come; leaving the loop early cancels the call."""
        call = method(request, timeout=timeout_s, metadata=self._metadata)
        try:
            async for message in call:
                yield _decoded(decode, message, self.address)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None
        finally:
            call.cancel()


class SyncConnection:
    """Base of the blocking clients; a context manager, usable from any thread."""

    def __init__(self, settings: ChannelSettings) -> None:
        self.address = settings.address
        self._metadata = call_metadata(settings)
        self._channel = open_sync_channel(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; calls still open are cancelled."""
        self._channel.close()

    def _call(self, method: Any, request: Any, decode: Callable[[Any], T], timeout_s: float) -> T:
        """One answer to a request or to an iterator of requests."""
        try:
            message = method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None
        return _decoded(decode, message, self.address)

    def _stream(
        self, method: Any, request: Any, decode: Callable[[Any], T], timeout_s: float
    ) -> Generator[T, None, None]:
        """The answers as they come; leaving the loop early cancels the call."""
        call = method(request, timeout=timeout_s, metadata=self._metadata)
        try:
            for message in call:
                yield _decoded(decode, message, self.address)
        except grpc.RpcError as error:
            raise from_rpc_error(error, self.address) from None
        finally:
            call.cancel()
