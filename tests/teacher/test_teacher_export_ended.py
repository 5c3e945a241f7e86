"""An export that nobody waits for ends its merging; what a killed teacher had begun is cleared at the next start."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teacher.config import TeacherSettings
from teacher.leftovers import clear_leftovers
from teacher.policies import PolicyStore
from teacher.service import TeacherService
from tutelage.models.loading import load_model
from tutelage.models.tiny import write_tiny_model
from tutelage.v1 import teacher_service_pb2 as pb


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TeacherSettings:
    folder = tmp_path_factory.mktemp("export")
    model = str(write_tiny_model(folder / "model"))
    return TeacherSettings(model=model, device="cpu", threads=1, data_dir=folder / "data", quantisation="none")


def soon(found: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not found() and time.monotonic() < until:
        time.sleep(0.05)
    return found()


def runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_cancelled_export_ends_its_merging_and_leaves_nothing(
    settings: TeacherSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = TeacherService(settings)
    asyncio.run(service.start())
    version = PolicyStore(
        settings.data_dir / "policies", load_model(settings.model, threads=1).revision
    ).initial.version
    started = tmp_path / "process"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {started}.part; mv {started}.part {started}; exec sleep 60\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    async def cancelled() -> None:
        context: Any = None
        request = pb.ExportPolicyRequest(version=version, form=pb.POLICY_FORM_MERGED)
        parts = service.ExportPolicy(request, context)
        reading = asyncio.ensure_future(anext(parts))
        assert await asyncio.to_thread(soon, started.exists)
        reading.cancel()
        # Nothing else is raised: not that the generator is at work.
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not runs(int(started.read_text()))
        assert not list(settings.data_dir.glob(".export-*"))

    asyncio.run(cancelled())


def test_merging_ends_with_the_teacher_that_began_it(settings: TeacherSettings, tmp_path: Path) -> None:
    request = {"model": settings.model, "cache_dir": "", "adapter": "", "output": str(tmp_path / "merged")}
    command = [sys.executable, "-m", "teacher.policy_export"]
    done = subprocess.run(command, input=json.dumps(request) + "\n", text=True, check=False, capture_output=True)
    assert done.returncode == 75, done.stderr


def test_what_a_killed_teacher_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    left = (
        ".export-x/model.safetensors",
        ".promoted.json.0f",
        "policies/.new-0f/adapter_model.safetensors",
        "policies/.initial-a.json.0f",
        "updates/a/work/adapter/adapter_config.json",
        "updates/b/work/log.txt",
        "updates/b/.result.json.0f",
    )
    kept = (".in-use", "promoted.json", "policies/a/manifest.json", "policies/initial-a.json", "updates/b/result.json")
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    clear_leftovers(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
    # An update that made nothing has no folder either.
    assert [path.name for path in (tmp_path / "updates").iterdir()] == ["b"]
    clear_leftovers(tmp_path / "not there")


def test_a_teacher_clears_its_folder_when_it_starts(settings: TeacherSettings) -> None:
    work = settings.data_dir / "updates" / "a" / "work"
    work.mkdir(parents=True)
    asyncio.run(TeacherService(settings).start())
    assert not work.parent.exists()
