"""Memory is what the system tells or a container is held to, whichever is less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tutelage.models.memory as memory

CPU = torch.device("cpu")
GIB = 2**30


def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> None:
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)


MEMINFO = "MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:    8388608 kB\n"


@pytest.mark.parametrize("unlimited", [{}, {"memory_max": "max\n"}])
def test_a_machine_of_its_own(unlimited: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, meminfo=MEMINFO, **unlimited)
    assert (memory.total_bytes(CPU), memory.free_bytes(CPU)) == (16 * GIB, 8 * GIB)


@pytest.mark.parametrize(("limit", "total", "free"), [(4, 4, 3), (14, 14, 8), (1, 1, 0), (64, 16, 8)])
def test_a_container(limit: int, total: int, free: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds three GiB, two of them files that the kernel gives back."""
    held = {"memory_current": f"{3 * GIB}\n", "memory_stat": f"anon {GIB}\ninactive_file {2 * GIB}\n"}
    machine(tmp_path, monkeypatch, meminfo=MEMINFO, memory_max=f"{limit * GIB}\n", **held)
    assert (memory.total_bytes(CPU), memory.free_bytes(CPU)) == (total * GIB, free * GIB)


@pytest.mark.parametrize("meminfo", [None, "", "MemTotal:\nMemAvailable: many kB\n"])
def test_where_nobody_tells(meminfo: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(tmp_path, monkeypatch, **({} if meminfo is None else {"meminfo": meminfo}))
    assert memory.total_bytes(CPU) == memory.free_bytes(CPU) == memory.UNKNOWN


def test_this_machine_has_memory() -> None:
    assert 0 < memory.free_bytes(CPU) <= memory.total_bytes(CPU)
