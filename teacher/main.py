"""The teacher as a process."""

from __future__ import annotations

import asyncio

from teacher.config import TeacherSettings


def run(settings: TeacherSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    # Imported here so that reading settings costs no torch, and a teacher without a model none at all.
    from tutelage.rpc.server import serve

    if settings.backend == "model":
        from teacher.service import TeacherService

        asyncio.run(serve(TeacherService(settings), settings.server))
    else:
        from teacher.baseline_service import BaselineService, baseline_of

        asyncio.run(serve(BaselineService(settings, baseline_of(settings)), settings.server))
