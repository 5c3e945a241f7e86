"""Typed clients of the three services, in the domain's objects; imported only when they are named."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tutelage.client.orchestrator import OrchestratorClient, SyncOrchestratorClient
    from tutelage.client.student import StudentClient, SyncStudentClient
    from tutelage.client.teacher import SyncTeacherClient, TeacherClient

__all__ = [
    "OrchestratorClient",
    "StudentClient",
    "SyncOrchestratorClient",
    "SyncStudentClient",
    "SyncTeacherClient",
    "TeacherClient",
]


def __getattr__(name: str) -> object:
    # gRPC takes a tenth of a second to import, which a command's --help need not pay.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = name.removeprefix("Sync").removesuffix("Client").lower()
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
