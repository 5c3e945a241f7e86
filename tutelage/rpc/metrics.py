"""Metrics of calls under the names that dashboards for gRPC know, and what is built in."""

from __future__ import annotations

import logging
import platform
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
from google.protobuf import descriptor_pool
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from tutelage import __version__
from tutelage.rpc.config import ServerSettings

logger = logging.getLogger(__name__)

SILENT_S = 10.0
"""Seconds that a peer of the page may say nothing."""
_LABELS = ("grpc_service", "grpc_method")
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)

STARTED = Counter("grpc_server_started_total", "Calls that began.", _LABELS)
HANDLED = Counter("grpc_server_handled_total", "Calls that ended, by status code.", (*_LABELS, "grpc_code"))
HANDLING = Histogram("grpc_server_handling_seconds", "Seconds a call took.", _LABELS, buckets=_BUCKETS)
BUILD_INFO = Gauge("tutelage_build_info", "Always 1; the labels say what runs.", ("service", "version", "python"))

SERVING = Gauge("tutelage_serving", "What health says: 1 while the service serves, 0 while it starts or cannot.")


def initialise(service: str, grpc_service_names: Iterable[str]) -> None:
    """Sets every combination of labels to 0, so that rates and alerts work from the first scrape."""
    BUILD_INFO.labels(service, __version__, platform.python_version()).set(1)
    pool = descriptor_pool.Default()
    for name in grpc_service_names:
        for method in pool.FindServiceByName(name).methods:
            STARTED.labels(name, method.name)
            HANDLING.labels(name, method.name)
            for code in grpc.StatusCode:
                HANDLED.labels(name, method.name, code.name)


@dataclass(frozen=True)
class MetricsEndpoint:
    """A running /metrics page."""

    address: str
    """host:port, or empty when it is turned off."""
    server: WSGIServer | None = None
    thread: threading.Thread | None = None

    def close(self) -> None:
        """Stops it and waits for its thread."""
        if self.server is not None and self.thread is not None:
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()


def open_metrics(settings: ServerSettings) -> MetricsEndpoint:
    """Serves /metrics on the server's host, under its TLS if it has any; OSError when the port is taken."""
    if settings.metrics_port is None:
        return MetricsEndpoint("")
    tls = settings.tls
    server: Any
    server, thread = start_http_server(
        settings.metrics_port,
        addr=settings.host,
        certfile=str(tls.certificate) if tls else None,
        keyfile=str(tls.key) if tls else None,
        client_cafile=str(tls.client_ca) if tls and tls.client_ca else None,
        client_auth_required=bool(tls and tls.client_ca),
    )
    if tls:
        # Each peer's handshake is its own thread's: the one that accepts would wait for ever for a peer that says
        # nothing, such as a check whether the port is open, and with it every scrape and the server's end.
        server.socket.do_handshake_on_connect = False
    handler = server.RequestHandlerClass
    server.RequestHandlerClass = type(handler.__name__, (handler,), {"timeout": SILENT_S})
    server.handle_error = _not_served
    return MetricsEndpoint(f"{settings.host}:{server.server_port}", server, thread)


def _not_served(_: object, address: object) -> None:
    logger.debug("metrics: %s was not served", address, exc_info=True)
