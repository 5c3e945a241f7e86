"""Where a student's replicas are: addresses as they stand, names that resolve to many, and files that may change."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config import StudentChannel
from tutelage.domain.errors import Unavailable
from tutelage.rpc.config import ADDRESS, is_address

DNS = "dns:"


@dataclass(frozen=True)
class Endpoint:
    address: str
    """host:port."""
    server_name: str = ""
    """The name it was resolved from, which its certificate carries."""


Resolver = Callable[[str, int], Awaitable[list[str]]]
"""From a host's name and port to numeric addresses; OSError when it does not resolve."""


async def resolve_host(host: str, port: int) -> list[str]:
    """The numeric addresses of a host, by the system's resolver."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return sorted({str(each[4][0]) for each in found})


def _lines(text: str, file: Path) -> list[str]:
    """The addresses in a file; Unavailable names each line that is none, since gRPC would ask it at port 443."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    found = [(number, line) for number, line in lines if line and not line.startswith("#")]
    wrong = [f"line {number}, {line[:200]!r}" for number, line in found if not is_address(line)]
    if wrong:
        raise Unavailable(f"{file} is not of addresses, {ADDRESS}: {'; '.join(wrong[:20])}")
    return [line for _, line in found]


async def endpoints(settings: StudentChannel, resolve: Resolver = resolve_host) -> list[Endpoint]:
    """The replicas there are now, each once; Unavailable when a name does not resolve or a file cannot be read."""
    listed = [settings.address, *settings.addresses] if settings.address else [*settings.addresses]
    if settings.addresses_file is not None:
        try:
            text = await asyncio.to_thread(settings.addresses_file.read_text, encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Unavailable(f"{settings.addresses_file} cannot be read: {error}") from None
        listed += _lines(text, settings.addresses_file)
    found: dict[str, Endpoint] = {}
    for address in listed:
        if not address.startswith(DNS):
            found.setdefault(address, Endpoint(address))
            continue
        host, _, port = address.removeprefix(DNS).lstrip("/").rpartition(":")
        try:
            numeric = await resolve(host, int(port))
        except (OSError, ValueError) as error:
            raise Unavailable(f"{address} does not resolve: {error}") from None
        for each in numeric:
            literal = f"[{each}]:{port}" if ":" in each else f"{each}:{port}"
            found.setdefault(literal, Endpoint(literal, host))
    return list(found.values())
