"""Versions of a student as the command line goes back over them, with a real orchestrator and its store."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

from typer.testing import CliRunner

from tutelage.cli.main import app
from tutelage.client import OrchestratorClient
from tutelage.domain.description import Adapter
from tutelage.rpc.config import ChannelSettings

V1, V2, V3 = (digit * 64 for digit in "123")


def adapters(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["adapters", *arguments])


def learn(address: str, *versions: str) -> None:
    """Makes each version current over the one before, the first over the untouched base model."""

    async def body() -> None:
        async with OrchestratorClient(ChannelSettings(address=address)) as client:
            for before, version in zip(("", *versions), versions, strict=False):
                await client.set_current_adapter("a", before, version)

    asyncio.run(body())


def keep(world: Any, *versions: str) -> None:
    """The student's replica keeps these versions."""
    for version in versions:
        world.a.adapters[version] = Adapter(version, "", "e", 4, 100, datetime(2026, 1, 1, tzinfo=UTC))


def test_each_rollback_goes_further_back_and_what_was_left_can_be_named(served: Any, world: Any) -> None:
    keep(world, V1, V2, V3)
    with served() as address:
        at = ("--orchestrator", address)
        learn(address, V1, V2, V3)
        for expected in (V2, V1, ""):
            shown = json.loads(adapters("rollback", "a", "--json", *at).stdout)
            assert shown["current_adapter_version"] == expected
        assert shown["previous_adapter_versions"] == []
        assert shown["left_adapter_versions"] == [V1, V2, V3]
        nothing = adapters("rollback", "a", *at)
        assert nothing.exit_code == 1
        assert "nothing to go back to" in str(nothing.exception)
        forward = json.loads(adapters("rollback", "a", V3[:8], "--json", *at).stdout)
        assert forward["current_adapter_version"] == V3
        assert forward["previous_adapter_versions"] == [""]
        assert forward["left_adapter_versions"] == [V1, V2]
