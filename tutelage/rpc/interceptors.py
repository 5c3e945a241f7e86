"""What happens around every call: it is counted, its token is checked, and its errors become statuses."""

from __future__ import annotations

import asyncio
import hmac
import inspect
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc

from tutelage.domain.errors import TutelageError
from tutelage.rpc import metrics
from tutelage.rpc.errors import DETAILS_KEY, to_status

logger = logging.getLogger(__name__)

_HEALTH_PREFIX = "/grpc.health.v1.Health/"
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
Around = Callable[[Any], AbstractAsyncContextManager[None]]


def _rebuilt(handler: Any, behaviour: Any) -> Any:
    """A handler of the same shape and serialisers with another behaviour."""
    make: Any
    if handler.request_streaming:
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
    else:
        make = (
            grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
        )
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


def _behaviour(handler: Any) -> Any:
    return handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream


def wrapped(handler: Any, around: Around) -> Any:
    """The handler inside an async context that is given the call's context; for all four shapes.

    A handler that is not asynchronous runs in a thread of gRPC's own and is left as it is.
    """
    inner = _behaviour(handler)
    if inspect.isasyncgenfunction(inner):

        async def generator(request: Any, context: Any) -> AsyncIterator[Any]:
            async with around(context):
                stream = inner(request, context)
                try:
                    async for response in stream:
                        yield response
                finally:
                    await stream.aclose()

        return _rebuilt(handler, generator)
    if inspect.iscoroutinefunction(inner):

        async def coroutine(request: Any, context: Any) -> Any:
            async with around(context):
                return await inner(request, context)

        return _rebuilt(handler, coroutine)
    return handler


def _names(method: str) -> tuple[str, str]:
    service, _, name = method.lstrip("/").partition("/")
    return service, name


def _code_name(context: Any) -> str:
    code = context.code()
    value = code.value[0] if isinstance(code, grpc.StatusCode) else int(code or 0)
    return _CODES.get(value, "UNKNOWN")


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Counts calls of known methods (so that the labels stay bounded) and says once when one has no deadline."""

    def __init__(self) -> None:
        self._without_deadline: set[str] = set()

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The counted handler."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        service, name = _names(method)

        @asynccontextmanager
        async def around(context: Any) -> AsyncIterator[None]:
            if context.time_remaining() is None and method not in self._without_deadline:
                self._without_deadline.add(method)
                logger.info("%s was called without a deadline (said once)", method)
            metrics.STARTED.labels(service, name).inc()
            began = time.monotonic()
            code = "UNKNOWN"
            try:
                yield
                code = _code_name(context)
            except (asyncio.CancelledError, GeneratorExit):
                code = "CANCELLED"
                raise
            except BaseException:
                code = _code_name(context)
                code = "UNKNOWN" if code == "OK" else code
                raise
            finally:
                metrics.HANDLED.labels(service, name, code).inc()
                metrics.HANDLING.labels(service, name).observe(time.monotonic() - began)

        return wrapped(handler, around)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without the bearer token; health stays open, since probes carry none."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler, or one that refuses."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_HEALTH_PREFIX):
            return handler
        metadata = handler_call_details.invocation_metadata or ()
        given = next((value for key, value in metadata if key == "authorization"), "")
        given = given.encode() if isinstance(given, str) else given
        if hmac.compare_digest(given, self._expected):
            return handler
        reason = "the token is wrong" if given else "a bearer token is required"

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, reason)

        return _rebuilt(handler, refuse)


class StartingInterceptor(grpc.aio.ServerInterceptor):
    """Answers UNAVAILABLE on the service's own methods until it has started."""

    def __init__(self, grpc_service_names: frozenset[str]) -> None:
        self._names = grpc_service_names
        self.started = False

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler, or one that says that the service is starting."""
        handler = await continuation(handler_call_details)
        if handler is None or self.started or _names(handler_call_details.method)[0] not in self._names:
            return handler

        async def refuse(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the service is starting")

        return _rebuilt(handler, refuse)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Domain errors become statuses with details; any other error is logged and hidden behind a reference."""

    async def intercept_service(self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler whose errors are mapped."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method

        @asynccontextmanager
        async def around(context: Any) -> AsyncIterator[None]:
            try:
                yield
            except grpc.aio.AbortError:
                raise
            except TutelageError as error:
                status = to_status(error)
                logger.info("%s: %s: %s", method, type(error).__name__, status.message)
                await _abort(context, status.code, status.message, status.SerializeToString())
            except Exception:
                reference = secrets.token_hex(4)
                logger.exception("%s failed (reference %s)", method, reference)
                text = f"internal error; the service's log has it under reference {reference}"
                await _abort(context, grpc.StatusCode.INTERNAL.value[0], text, b"")

        return wrapped(handler, around)


async def _abort(context: Any, code: int, text: str, details: bytes) -> None:
    status = next(item for item in grpc.StatusCode if item.value[0] == code)
    await context.abort(status, text, ((DETAILS_KEY, details),) if details else ())
