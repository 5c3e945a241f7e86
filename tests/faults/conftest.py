"""The stack of real processes of tests/stack, with proxies before its services and its database, and who breaks it."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from sqlalchemy import make_url

from tutelage.client import SyncOrchestratorClient
from tutelage.rpc.config import ChannelSettings

HERE = Path(__file__).resolve().parent


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


stack_conftest = _loaded("faults_stack_of_processes", HERE.parent / "stack" / "conftest.py")
orchestrator_conftest = _loaded("faults_orchestrator_fixtures", HERE.parent / "orchestrator" / "conftest.py")
# Torch starts slowly where much else goes on.
stack_conftest.READY_S = 300.0  # type: ignore[attr-defined]
proxy = _loaded("faults_proxy", HERE / "proxy.py")
breaker_module = _loaded("faults_breaker", HERE / "breaker.py")

tiny_model = stack_conftest.tiny_model
postgres = orchestrator_conftest.postgres


class ProxiedStack(stack_conftest.Stack):  # type: ignore[name-defined,misc]
    """The orchestrator reaches teacher and students through proxies.

    On PostgreSQL there are two orchestrators, and each reaches the database through a proxy of its own.
    """

    def __init__(self, folder: Path, model: Path, database_url: str = "", deterministic: bool = True) -> None:
        super().__init__(folder, model)
        self.database_url, self.deterministic = database_url, deterministic
        self.orchestrators = ("orchestrator", "deputy") if database_url else ("orchestrator",)
        self.proxies: dict[str, Any] = {}
        self.database_proxies: dict[str, Any] = {}

    def start_all(self) -> None:
        super().start_all()
        for name in self.orchestrators[1:]:
            self.start(name)
            self.wait_ready(name)

    def wait_ready(self, name: str) -> None:
        """An orchestrator that cannot reach its database ends, and is started again as a supervisor would."""
        deadline = time.monotonic() + stack_conftest.READY_S
        while name in self._addresses and not self._ready_file(name).exists() and time.monotonic() < deadline:
            if name in self.orchestrators and self._processes[name].poll() is not None:
                self.start(name)
            time.sleep(0.1)
        super().wait_ready(name)

    def clients(self) -> Iterator[SyncOrchestratorClient]:
        """Of each orchestrator one, to be used before the next is asked for."""
        for name in self.orchestrators:
            with SyncOrchestratorClient(ChannelSettings(address=self.address(name))) as client:
                yield client

    def _room(self, name: str) -> str:
        return "orchestrator" if name in self.orchestrators else str(super()._room(name))

    def _config(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = super()._config(name)
        if name in stack_conftest.STUDENTS:
            config["deterministic"] = self.deterministic
        if name in self.orchestrators:
            for each in ("teacher", *stack_conftest.STUDENTS):
                if each not in self.proxies:
                    self.proxies[each] = proxy.Proxy(self.address(each))
            config["teacher"]["address"] = self.proxies["teacher"].address
            for student, channel in config["students"].items():
                channel["address"] = self.proxies[student].address
            if self.database_url:
                config["database_url"] = self._by_proxy(f"the database of the {name}")
        return config

    def _by_proxy(self, which: str) -> str:
        """URL of the database through the proxy of that name."""
        url = make_url(self.database_url)
        if which not in self.database_proxies:
            folder = url.query.get("host")
            target = f"{folder}/.s.PGSQL.{url.port or 5432}" if folder else f"{url.host}:{url.port or 5432}"
            self.database_proxies[which] = self.proxies[which] = proxy.Proxy(target)
        host, _, port = self.database_proxies[which].address.rpartition(":")
        query = {name: value for name, value in url.query.items() if name != "host"}
        return url.set(host=host, port=int(port), query=query).render_as_string(hide_password=False)

    def stop(self) -> None:
        super().stop()
        for each in self.proxies.values():
            each.close()


def _stacks(folder: Path, model: Path) -> Iterator[Callable[..., ProxiedStack]]:
    """Starts stacks, each in a folder of its own, and stops them all."""
    stacks: list[ProxiedStack] = []

    def make(name: str, database_url: str = "", *, deterministic: bool = True) -> ProxiedStack:
        (folder / name).mkdir()
        stack = ProxiedStack(folder / name, model, database_url, deterministic)
        stacks.append(stack)
        stack.start_all()
        return stack

    yield make
    for stack in stacks:
        stack.stop()


@pytest.fixture
def make_stack(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[..., ProxiedStack]]:
    yield from _stacks(tmp_path, tiny_model)


@pytest.fixture(scope="module")
def make_module_stack(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[Callable[..., ProxiedStack]]:
    yield from _stacks(tmp_path_factory.mktemp("module"), tiny_model)


@pytest.fixture
def breaker() -> type[Any]:
    return breaker_module.Breaker  # type: ignore[no-any-return]
