"""`tutelage ask` reaches a student wherever its replicas are, and whichever of them keeps the version."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tutelage.client as client_module
from tutelage.cli.main import app
from tutelage.client import OrchestratorClient, StudentClient
from tutelage.domain.description import Adapter
from tutelage.domain.errors import NotFound, Unavailable
from tutelage.domain.run import StudentReplica
from tutelage.rpc.config import ChannelSettings

VERSION = "1" * 64
GONE = "127.0.0.1:1"


def ask(address: str, *options: str) -> Any:
    return CliRunner().invoke(app, ["ask", "s", "Who?", "--orchestrator", address, *options])


def replicas_of(address: str) -> tuple[StudentReplica, ...]:
    async def body() -> tuple[StudentReplica, ...]:
        async with OrchestratorClient(ChannelSettings(address=address)) as client:
            (student,) = await client.list_students()
            return student.replicas

    return asyncio.run(body())


@pytest.fixture
def _told_apart(world: Any) -> None:
    """World's students are two replicas that say who they are; only the second keeps the version."""
    world.a.said, world.b.said = "from a", "from b"
    world.b.adapters[VERSION] = Adapter(VERSION, "", "e", 4, 100, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.usefixtures("_told_apart")
def test_replicas_are_asked_in_turn_until_one_answers(served: Any, world: Any) -> None:
    with served(students={"s": {"addresses": [GONE, world.a.address, world.b.address]}}) as address:
        assert [each.address for each in replicas_of(address)] == [GONE, world.a.address, world.b.address]
        base = ask(address)
        assert base.stdout == "from a\n", base
        assert ask(address, "--version", "base").stdout == "from a\n"

        async def learned() -> None:
            async with OrchestratorClient(ChannelSettings(address=address)) as client:
                await client.set_current_adapter("s", "", VERSION)

        asyncio.run(learned())
        assert ask(address).stdout == "from b\n"
        world.b.adapters.clear()
        missing = ask(address)
        # The replica that is away may keep it: that nobody has it cannot be said.
        assert isinstance(missing.exception, Unavailable)


@pytest.mark.usefixtures("_told_apart")
def test_replicas_listed_in_a_file_are_asked(served: Any, world: Any, tmp_path: Path) -> None:
    file = tmp_path / "replicas"
    file.write_text(f"{world.b.address}\n", encoding="utf-8")
    with served(students={"s": {"addresses_file": str(file)}}) as address:
        asked = ask(address)
        assert asked.stdout == "from b\n", asked


def test_a_version_that_no_replica_keeps_is_not_found(served: Any, world: Any) -> None:
    keep = Adapter(VERSION, "", "e", 4, 100, datetime(2026, 1, 1, tzinfo=UTC))
    world.a.adapters[VERSION] = keep
    with served(students={"s": {"addresses": [world.a.address, world.b.address]}}) as address:

        async def learned() -> None:
            async with OrchestratorClient(ChannelSettings(address=address)) as client:
                await client.set_current_adapter("s", "", VERSION)

        asyncio.run(learned())
        world.a.adapters.clear()
        assert isinstance(ask(address).exception, NotFound)


def test_the_name_on_a_replicas_certificate_is_told_and_used(
    served: Any, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[ChannelSettings] = []

    class Watched(StudentClient):
        def __init__(self, settings: ChannelSettings) -> None:
            opened.append(settings)
            super().__init__(settings)

    monkeypatch.setattr(client_module, "StudentClient", Watched)
    with served(students={"s": {"address": world.a.address, "server_name": "student.example"}}) as address:
        assert replicas_of(address) == (StudentReplica(world.a.address, "student.example"),)
        assert ask(address).exit_code == 0
    assert [(each.address, each.server_name) for each in opened] == [(world.a.address, "student.example")]
