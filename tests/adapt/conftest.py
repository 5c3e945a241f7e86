"""The orchestrator's world of tests (a teacher and students over gRPC): served to a command line, its inboxes quick."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import inbox_worker
from orchestrator.service import OrchestratorService
from tests.adapt.asking_teacher import let_ask
from tutelage.rpc.server import serve

_spec = importlib.util.spec_from_file_location(
    "orchestrator_world", Path(__file__).parent.parent / "orchestrator" / "conftest.py"
)
assert _spec is not None
assert _spec.loader is not None
_world = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_world)

world = _world.world
postgres = _world.postgres

Serve = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture
def make_world() -> Callable[[str], Any]:
    """A world on a database of one's own."""
    return _world.World  # type: ignore[no-any-return]


@pytest.fixture
def asking(world: Any) -> Any:
    """The world, with a teacher that writes questions."""
    return let_ask(world)


@pytest.fixture
def quick_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inboxes look for work, and try again after a fault, every 0.05 s."""
    for name in ("LOOK_S", "RUN_LOOK_S", "FAULT_S"):
        monkeypatch.setattr(inbox_worker, name, 0.05)


@pytest.fixture
def served(world: Any, tmp_path: Path) -> Iterator[Serve]:
    """The world and its orchestrator behind a port, in a thread of their own: for code that blocks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    @contextlib.contextmanager
    def orchestrator(**changes: Any) -> Iterator[str]:
        """Its address; it is stopped at the end, and may be started again on the same port."""
        ready = tmp_path / "ready.json"
        ready.unlink(missing_ok=True)
        settings = world.settings(
            server={"ready_file": str(ready), "grace_s": 1, **changes.pop("server", {})}, **changes
        )
        stop = asyncio.Event()
        running = asyncio.run_coroutine_threadsafe(
            serve(OrchestratorService(settings), settings.server, stop=stop), loop
        )
        while not ready.exists():
            assert not running.done(), running.exception()
            wait(asyncio.sleep(0.05))
        try:
            yield json.loads(ready.read_text())["address"]
        finally:
            loop.call_soon_threadsafe(stop.set)
            running.result(60)

    wait(world.up())
    try:
        yield orchestrator
    finally:
        wait(world.down())
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
