"""How the command line reaches services: the options every client command shares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tutelage.client import OrchestratorClient, StudentClient
    from tutelage.rpc.config import ChannelSettings

Orchestrator = Annotated[
    str,
    typer.Option(
        "--orchestrator",
        envvar="TUTELAGE_ORCHESTRATOR",
        help="Address of the orchestrator, host:port. TLS and token: TUTELAGE_CA, TUTELAGE_CERTIFICATE, TUTELAGE_KEY "
        "and TUTELAGE_TOKEN_FILE name files.",
    ),
]
DEFAULT_ORCHESTRATOR = "127.0.0.1:7070"

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def channel_settings(address: str, server_name: str = "") -> ChannelSettings:
    """The channel to an address, with TLS and token as the environment says.

    `server_name` is the name that the server's certificate carries, where it is not the address's host. InvalidInput
    for an address without a port.
    """
    from tutelage.domain.errors import InvalidInput
    from tutelage.rpc.config import ADDRESS, ChannelSettings, is_address

    if not is_address(address):
        raise InvalidInput.of("address", address, ADDRESS)

    def file(name: str) -> Path | None:
        value = os.environ.get(name)
        return Path(value) if value else None

    return ChannelSettings(
        address=address,
        server_name=server_name,
        ca=file("TUTELAGE_CA"),
        certificate=file("TUTELAGE_CERTIFICATE"),
        key=file("TUTELAGE_KEY"),
        token_file=file("TUTELAGE_TOKEN_FILE"),
    )


def orchestrator_client(address: str) -> OrchestratorClient:
    """The asynchronous client of the orchestrator at an address."""
    from tutelage.client import OrchestratorClient

    return OrchestratorClient(channel_settings(address))


def student_client(address: str, server_name: str = "") -> StudentClient:
    """The asynchronous client of the student at an address, whose certificate may carry another name."""
    from tutelage.client import StudentClient

    return StudentClient(channel_settings(address, server_name))
