"""Which process holds a lease, and whether that process is known to be dead: a restart need not wait for its own lease.

Only a process of this very machine and of this process' view of it (its PID namespace) can be told to be dead; of any
other nothing is known, and its lease has to run out.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

_PROC = Path("/proc")


def this_owner() -> str:
    """A name for this process that no other process ever has."""
    return ":".join((_place(), str(os.getpid()), _started(os.getpid()) or "?", uuid.uuid4().hex[:8]))


def is_dead(owner: str) -> bool:
    """Whether the process of that name has certainly ended."""
    parts = owner.split(":")
    if len(parts) != 4 or parts[0] != _place() or parts[2] == "?" or not parts[1].isdigit():
        return False
    # A process that started at another time has only inherited the number.
    return _started(int(parts[1])) != parts[2]


def _place() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}.{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return f"{socket.gethostname()}.?"


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot; None when there is no such process."""
    try:
        status = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may hold blanks; what follows it starts with the third field, the state.
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
