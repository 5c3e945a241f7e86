"""The stack of real processes of tests/stack, with proxies before its services and a hand that breaks things."""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

HERE = Path(__file__).resolve().parent
END_SESSIONS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
    "AND backend_type = 'client backend'"
)


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

tiny_model = stack_conftest.tiny_model
postgres = orchestrator_conftest.postgres


class ProxiedStack(stack_conftest.Stack):  # type: ignore[name-defined,misc]
    """The orchestrator reaches teacher and students through proxies."""

    def __init__(self, folder: Path, model: Path, database_url: str = "", deterministic: bool = True) -> None:
        super().__init__(folder, model)
        self.database_url, self.deterministic = database_url, deterministic
        self.proxies: dict[str, Any] = {}

    def _config(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = super()._config(name)
        if name in stack_conftest.STUDENTS:
            config["deterministic"] = self.deterministic
        if name == "orchestrator":
            for each in ("teacher", *stack_conftest.STUDENTS):
                if each not in self.proxies:
                    self.proxies[each] = proxy.Proxy(self.address(each))
            config["teacher"]["address"] = self.proxies["teacher"].address
            for student, channel in config["students"].items():
                channel["address"] = self.proxies[student].address
            if self.database_url:
                config["database_url"] = self.database_url
        return config

    def stop(self) -> None:
        super().stop()
        for each in self.proxies.values():
            each.close()


class Breaker:
    """Breaks something of a stack, at random but for its seed, and says what."""

    def __init__(self, stack: ProxiedStack, seed: int) -> None:
        self._stack, self._random = stack, random.Random(seed)
        self.broken: list[str] = []

    def pause(self) -> None:
        """Waits until the next fault is due."""
        time.sleep(self._random.uniform(0.2, 4.0))

    def break_one(self) -> None:
        """One fault; whatever it stopped is started again, mostly at once, sometimes after a while."""
        services = ["orchestrator", "orchestrator", "ada", "ben", "teacher"]
        faults: list[Callable[[], str]] = [self._kill(self._random.choice(services)) for _ in range(4)]
        faults += [self._cut, self._slow]
        if self._stack.database_url:
            faults.append(self._end_sessions)
        if self._socket() is not None:
            faults.append(self._hide_database)
        done = self._random.choice(faults)()
        self.broken.append(done)
        print(f"  fault {len(self.broken)}: {done}", flush=True)

    def _kill(self, name: str) -> Callable[[], str]:
        def kill() -> str:
            self._stack.kill(name)
            away_s = self._random.choice([0.0, 0.0, 2.0])
            time.sleep(away_s)
            self._stack.start(name)
            self._stack.wait_ready(name)
            return f"kill -9 {name}, away for {away_s:g} s"

        return kill

    def _cut(self) -> str:
        name = self._random.choice(sorted(self._stack.proxies))
        self._stack.proxies[name].cut()
        return f"connections to {name} cut"

    def _slow(self) -> str:
        name = self._random.choice(sorted(self._stack.proxies))
        self._stack.proxies[name].delay(self._random.choice([0.05, 0.5]))
        time.sleep(1.0)
        self._stack.proxies[name].delay(0.0)
        return f"traffic to {name} delayed"

    def _end_sessions(self) -> str:
        with psycopg.connect(self._stack.database_url, autocommit=True) as connection:
            ended = connection.execute(END_SESSIONS).fetchone()
        return f"{ended[0] if ended else 0} database connections ended"

    def _socket(self) -> Path | None:
        """Where the database is reached, if that is a socket of this machine."""
        folder = parse_qs(urlsplit(self._stack.database_url).query).get("host", [""])[0]
        socket = Path(folder) / ".s.PGSQL.5432"
        return socket if folder and socket.exists() else None

    def _hide_database(self) -> str:
        socket, away_s = self._socket(), self._random.choice([2.0, 2.0, 60.0])
        assert socket is not None
        with psycopg.connect(self._stack.database_url, autocommit=True) as connection:
            socket.rename(socket.with_suffix(".hidden"))
            connection.execute(END_SESSIONS)
        try:
            time.sleep(away_s)
        finally:
            socket.with_suffix(".hidden").rename(socket)
        return f"the database away for {away_s:g} s"


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
def breaker() -> type[Breaker]:
    return Breaker
