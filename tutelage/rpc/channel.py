"""Channels to a service: keepalive, TLS and message sizes the same for asynchronous and blocking clients."""

from __future__ import annotations

import grpc

from tutelage.domain.errors import InvalidInput
from tutelage.rpc.config import ChannelSettings, is_loopback, read_pem, read_token

RECONNECT_S = 2.0
"""Most seconds, but for a fifth of jitter, between two tries to reach a peer that is away.

Calls in between fail at once with what the latest try met, also when the peer has come up since.
"""


def _options(settings: ChannelSettings) -> list[tuple[str, int | str]]:
    size = settings.max_message_mib * 2**20
    name: list[tuple[str, int | str]] = []
    if settings.server_name:
        name = [("grpc.ssl_target_name_override", settings.server_name)]
    return [
        *name,
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        # Without it a call to a machine that vanished hangs until its deadline.
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        # The first timeout is enforced by the kernel, on bytes that no machine took; the second by gRPC itself, where
        # a proxy or a stopped process takes them and nobody answers. It is a minute unless told.
        ("grpc.keepalive_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(settings.keepalive_timeout_s * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 500),
        ("grpc.max_reconnect_backoff_ms", int(RECONNECT_S * 1000)),
        # Callers retry by id, knowingly: a hidden retry could train twice.
        ("grpc.enable_retries", 0),
    ]


def _credentials(settings: ChannelSettings) -> grpc.ChannelCredentials:
    if (settings.certificate is None) != (settings.key is None):
        raise InvalidInput.of("key", settings.key, "a certificate and its key together")
    return grpc.ssl_channel_credentials(
        read_pem(settings.ca, "ca") if settings.ca else None,
        read_pem(settings.key, "key") if settings.key else None,
        read_pem(settings.certificate, "certificate") if settings.certificate else None,
    )


def open_channel(settings: ChannelSettings) -> grpc.aio.Channel:
    """An asynchronous channel; connects with the first call. InvalidInput when a file cannot be read."""
    if settings.secure:
        return grpc.aio.secure_channel(settings.address, _credentials(settings), options=_options(settings))
    return grpc.aio.insecure_channel(settings.address, options=_options(settings))


def open_sync_channel(settings: ChannelSettings) -> grpc.Channel:
    """A blocking channel; connects with the first call. InvalidInput when a file cannot be read."""
    if settings.secure:
        return grpc.secure_channel(settings.address, _credentials(settings), options=_options(settings))
    return grpc.insecure_channel(settings.address, options=_options(settings))


def call_metadata(settings: ChannelSettings) -> tuple[tuple[str, str], ...]:
    """The metadata of every call: the token, which never travels in plain text beyond this machine."""
    if settings.token_file is None:
        return ()
    host = settings.address.rsplit(":", 1)[0]
    if not settings.secure and not is_loopback(host):
        raise InvalidInput.of("ca", "nothing", f"TLS is required to send a token to {settings.address}")
    return (("authorization", f"Bearer {read_token(settings.token_file, 'token_file')}"),)
