"""The memory that a device has, and has to spare."""

from __future__ import annotations

from pathlib import Path

import torch

UNKNOWN = 4 * 2**30
"""Taken for a CPU's where the system does not say."""


def free_bytes(device: torch.device) -> int:
    """Memory that can be had on the device now."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else _told("MemAvailable:")


def total_bytes(device: torch.device) -> int:
    """All memory of the device: the same at every start."""
    return int(torch.cuda.mem_get_info(device)[1]) if device.type == "cuda" else _told("MemTotal:")


def _told(name: str) -> int:
    told = Path("/proc/meminfo")
    lines = told.read_text(encoding="ascii").splitlines() if told.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), UNKNOWN)
