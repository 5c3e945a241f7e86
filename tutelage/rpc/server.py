"""One way to serve: bind, answer health at once, load, serve, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tutelage.domain.errors import InvalidInput, TutelageError, Unavailable
from tutelage.rpc import metrics
from tutelage.rpc.config import ServerSettings, check_exposure, is_loopback, read_pem, read_token
from tutelage.rpc.interceptors import ErrorInterceptor, MetricsInterceptor, StartingInterceptor, TokenInterceptor
from tutelage.rpc.logging import configure_logging

logger = logging.getLogger(__name__)

READY_POLL_S = 5.0
"""Seconds between two questions whether the service is ready."""
READY_TIMEOUT_S = 60.0
"""Seconds an answer to that question may take before it counts as no."""


class Service(Protocol):
    """What a service tells the server about itself."""

    name: str
    """Such as `student`."""
    grpc_service_names: Sequence[str]
    """Full names, such as `tutelage.v1.StudentService`."""

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the servicers; calls are let through only after `start`."""

    async def start(self) -> None:
        """Loads what is needed; health is NOT_SERVING until it returns."""

    async def ready(self) -> bool:
        """Whether it would answer now, such as that its model does."""

    async def stop(self) -> None:
        """Ends its own tasks; called after the last call has ended."""


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    size = settings.max_message_mib * 2**20
    tolerated_ms = int(min(10.0, settings.keepalive_s / 2) * 1000)
    return [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        # The first timeout is enforced by the kernel, on bytes that no machine took; the second by gRPC itself, where
        # a proxy or a stopped process takes them and nobody answers. It is a minute unless told.
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", tolerated_ms),
        # Otherwise two processes share a port unnoticed.
        ("grpc.so_reuseport", 0),
    ]


def _bind(server: grpc.aio.Server, settings: ServerSettings) -> str:
    """Binds and returns host:port; InvalidInput when the address cannot be had."""
    host = f"[{settings.host}]" if ":" in settings.host and not settings.host.startswith("[") else settings.host
    address = f"{host}:{settings.port}"
    try:
        if settings.tls is None:
            port = server.add_insecure_port(address)
        else:
            tls = settings.tls
            pair = (read_pem(tls.key, "server.tls.key"), read_pem(tls.certificate, "server.tls.certificate"))
            authority = read_pem(tls.client_ca, "server.tls.client_ca") if tls.client_ca else None
            credentials = grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
            port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise InvalidInput.of("server.port", address, "an address that is free, and a certificate that fits its key")
    return f"{host}:{port}"


def write_ready_file(path: Path, address: str, metrics_address: str) -> None:
    """Writes {"address", "metrics_address", "pid"} atomically: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"address": address, "metrics_address": metrics_address, "pid": os.getpid()}
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(temporary, path)


def _stop_on_signals(stop: asyncio.Event) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


class _Health:
    """The health service, set for the server as a whole and for each of its services."""

    def __init__(self, server: grpc.aio.Server, names: Sequence[str]) -> None:
        self._servicer = health.aio.HealthServicer()
        self._names = ("", *names)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        metrics.SERVING.set(serving)
        for name in self._names:
            await self._servicer.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def end(self) -> None:
        metrics.SERVING.set(0)
        await self._servicer.enter_graceful_shutdown()


async def _watch_ready(service: Service, state: _Health) -> None:
    """Holds health to what the service says of itself; runs until cancelled.

    One that does not answer is not waited for, not even for its cancellation, and asked again once it has answered.
    """
    was_ready = True
    asked: asyncio.Task[bool] | None = None
    try:
        while True:
            await asyncio.sleep(READY_POLL_S)
            asked = asked or asyncio.create_task(service.ready())
            await asyncio.wait({asked}, timeout=READY_TIMEOUT_S)
            ready, fault = False, _no_answer()
            if asked.done():
                fault = asked.exception()
                ready, asked = fault is None and asked.result(), None
            if ready != was_ready:
                _tell_ready(service, ready, fault)
                await state.set(ready)
            was_ready = ready
    finally:
        if asked is not None:
            asked.cancel()


def _no_answer() -> BaseException | None:
    return Unavailable(f"no answer within {READY_TIMEOUT_S:g} s")


def _tell_ready(service: Service, ready: bool, fault: BaseException | None) -> None:
    """Once for each change: a database that is away for an hour is not worth a thousand tracebacks."""
    if ready:
        logger.info("%s is ready", service.name)
    elif fault is None:
        logger.warning("%s is not ready", service.name)
    else:
        known = isinstance(fault, TutelageError)
        logger.warning("%s is not ready: %s", service.name, fault, exc_info=None if known else fault)


async def _until_stopped(service: Service, state: _Health, start: asyncio.Task[None], stop: asyncio.Event) -> bool:
    """Waits for the start; False when the stop came first. What `start` raises is raised."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({start, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    if not start.done():
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await start
        return False
    start.result()
    await state.set(True)
    return True


async def serve(service: Service, settings: ServerSettings, *, stop: asyncio.Event | None = None) -> None:
    """Serves until SIGTERM, SIGINT or `stop`; InvalidInput before anything is bound when it would be exposed.

    Health answers at once; calls get UNAVAILABLE until `service.start` is through. Running calls have
    `grace_s` to end. What `service.start` raises is raised here.
    """
    configure_logging(settings.log_format, settings.log_level)
    check_exposure(settings)
    stop = stop or asyncio.Event()
    _stop_on_signals(stop)
    gate = StartingInterceptor(frozenset(service.grpc_service_names))
    interceptors: list[grpc.aio.ServerInterceptor] = [MetricsInterceptor()]
    if settings.token_file is not None:
        interceptors.append(TokenInterceptor(read_token(settings.token_file, "server.token_file")))
    server = grpc.aio.server(interceptors=[*interceptors, gate, ErrorInterceptor()], options=_options(settings))
    state = _Health(server, service.grpc_service_names)
    service.register(server)
    reflection.enable_server_reflection(
        [*service.grpc_service_names, health.SERVICE_NAME, reflection.SERVICE_NAME], server
    )
    address = _bind(server, settings)
    if settings.ready_file is not None:
        # One that was killed has left its own, which would say that this one serves.
        settings.ready_file.unlink(missing_ok=True)
    metrics.initialise(service.name, service.grpc_service_names)
    await state.set(False)
    try:
        page = metrics.open_metrics(settings)
    except OSError as error:
        raise InvalidInput.of("server.metrics_port", settings.metrics_port, f"a free port ({error.strerror})") from None
    if not is_loopback(settings.host):
        logger.info("listening beyond this machine, with TLS and callers told apart")
    await server.start()
    logger.info("%s listens on %s%s", service.name, address, f", metrics on {page.address}" if page.address else "")
    watcher: asyncio.Task[None] | None = None
    try:
        if await _until_stopped(service, state, asyncio.create_task(service.start()), stop):
            gate.started = True
            watcher = asyncio.create_task(_watch_ready(service, state))
            if settings.ready_file is not None:
                write_ready_file(settings.ready_file, address, page.address)
            logger.info("%s serves", service.name)
            await stop.wait()
        logger.info("%s stops; running calls have %g s", service.name, settings.grace_s)
    finally:
        if settings.ready_file is not None:
            settings.ready_file.unlink(missing_ok=True)
        if watcher is not None:
            watcher.cancel()
        await state.end()
        await server.stop(settings.grace_s)
        await service.stop()
        await asyncio.to_thread(page.close)
        logger.info("%s has stopped", service.name)
