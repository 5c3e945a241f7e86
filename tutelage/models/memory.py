"""The memory that a device has, and has to spare.

A CPU's is what the system tells, or what a container is held to (version 2 of control groups, as seen from within it).
"""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
UNKNOWN = 4 * 2**30
"""Taken for a CPU's where nobody tells."""


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limit = _limit()
    free = _told(MEMINFO, "MemAvailable:", 1024)
    if limit is None:
        return UNKNOWN if free is None else free
    # What the kernel holds of files goes when it is asked for.
    held = (_number(CGROUP / "memory.current") or 0) - (_told(CGROUP / "memory.stat", "inactive_file") or 0)
    within = max(0, limit - max(0, held))
    return within if free is None else min(free, within)


def total_bytes(device: torch.device) -> int:
    """All memory of the device: the same at every start."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    known = [each for each in (_told(MEMINFO, "MemTotal:", 1024), _limit()) if each is not None]
    return min(known, default=UNKNOWN)


def _limit() -> int | None:
    return _number(CGROUP / "memory.max")


def _number(path: Path) -> int | None:
    """None where there is no such file, or no number in it ("max")."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _told(path: Path, name: str, unit: int = 1) -> int | None:
    """The number behind a name that begins a line."""
    try:
        lines = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return next((int(words[1]) * unit for words in lines if words and words[0] == name), None)
    except (OSError, ValueError, IndexError):
        return None
