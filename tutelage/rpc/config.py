"""How a service listens and how a client reaches it."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from tutelage.domain.errors import FieldViolation, InvalidInput
from tutelage.settings import Settings


class TlsSettings(Settings):
    """PEM files of a TLS server."""

    certificate: Path
    """The server's certificate chain."""
    key: Path
    """The certificate's private key."""
    client_ca: Path | None = None
    """Authority of client certificates; given, every client must show one (mTLS)."""


class ServerSettings(Settings):
    """What every service's server is told."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond loopback TLS and a token (or client certificates) are required."""
    port: int = Field(default=0, ge=0, le=65535)
    """TCP port; 0 takes a free one."""
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Port of Prometheus' /metrics on the same host; 0 takes a free one, nothing turns it off."""
    tls: TlsSettings | None = None
    """TLS; nothing means plain text, allowed on loopback only."""
    token_file: Path | None = None
    """File with the bearer token that every call must carry."""
    max_message_mib: int = Field(default=64, ge=1, le=1024)
    """Largest message taken or sent, in MiB."""
    keepalive_s: float = Field(default=20, gt=0)
    """Seconds between pings of a silent client, so that work for a vanished one ends."""
    keepalive_timeout_s: float = Field(default=10, gt=0)
    """Seconds a ping may stay unanswered."""
    grace_s: float = Field(default=30, ge=0)
    """Seconds that running calls may take to end after SIGTERM."""
    log_format: Literal["plain", "json"] = "plain"
    """How log lines look on standard error."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least level that is logged."""
    ready_file: Path | None = None
    """File written when the service serves: JSON with address, metrics_address and pid."""


ADDRESS = "host:port of the service, an IPv6 host in brackets"


_SCHEME = re.compile(r"(?:dns|ipv4|ipv6):(?:///)?")


def is_address(text: str) -> bool:
    """Whether it is host:port, with or without one of gRPC's schemes before it, or the path of a socket (`unix:`).

    An IPv6 address stands in brackets: without them nobody can tell its end from a port.
    """
    if text.startswith("unix:"):
        return True
    host, _, port = _SCHEME.sub("", text.strip(), count=1).rpartition(":")
    has_port = port.isascii() and port.isdecimal() and int(port) < 2**16
    bracketed = re.fullmatch(r"\[(.+)\]", host)
    return has_port and (_is_ipv6(bracketed[1]) if bracketed else re.fullmatch(r"[^\s:/\[\]]+", host) is not None)


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


class ChannelSettings(Settings):
    """What a client is told to reach a service."""

    address: str = Field(min_length=1)
    """host:port of the service."""
    ca: Path | None = None
    """Authority of the server's certificate; given, or with a client certificate, the channel uses TLS."""
    certificate: Path | None = None
    """The client's certificate chain, for mTLS."""
    key: Path | None = None
    """Private key of the client's certificate."""
    server_name: str = ""
    """Name that the server's certificate must carry; nothing means the address's host."""
    token_file: Path | None = None
    """File with the bearer token sent with every call."""
    keepalive_s: float = Field(default=20, gt=0)
    """Seconds between pings while a call is open; a service tolerates 10 and more by default."""
    keepalive_timeout_s: float = Field(default=10, gt=0)
    """Seconds a ping may stay unanswered before the peer counts as gone."""
    max_message_mib: int = Field(default=64, ge=1, le=1024)
    """Largest message taken or sent, in MiB."""

    @field_validator("address")
    @classmethod
    def _has_a_port(cls, value: str) -> str:
        # gRPC takes another address for one of port 443, and only ever says that nobody is there.
        if value and not is_address(value):
            raise ValueError(ADDRESS)
        return value

    @property
    def secure(self) -> bool:
        """Whether the channel uses TLS."""
        return self.ca is not None or self.certificate is not None


def is_loopback(host: str) -> bool:
    """Whether a host names this machine only; names other than `localhost` count as reachable from outside."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ServerSettings) -> None:
    """InvalidInput when the server would listen beyond loopback without TLS, or without telling callers apart."""
    if is_loopback(settings.host):
        return
    violations = []
    if settings.tls is None:
        violations.append(FieldViolation("server.tls", "nothing", f"TLS is required to listen on {settings.host}"))
    if settings.token_file is None and (settings.tls is None or settings.tls.client_ca is None):
        allowed = f"a token file (or tls.client_ca) is required to listen on {settings.host}"
        violations.append(FieldViolation("server.token_file", "nothing", allowed))
    if violations:
        raise InvalidInput(violations)


def read_token(path: Path, field: str) -> str:
    """The bearer token in a file, without surrounding blanks; InvalidInput when missing, empty or not ASCII."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise InvalidInput.of(field, path, "a readable file with an ASCII token") from None
    if not token or any(character.isspace() for character in token):
        raise InvalidInput.of(field, path, "a file with one token without blanks")
    return token


def read_pem(path: Path, field: str) -> bytes:
    """A PEM file's bytes; InvalidInput when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput.of(field, path, f"a readable PEM file ({error.strerror})") from None
