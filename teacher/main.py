"""The teacher as a process."""

from __future__ import annotations

import asyncio

from teacher.config import TeacherSettings


def run(settings: TeacherSettings) -> None:
    """Serve until SIGTERM or SIGINT."""
    # Imported here so that reading settings costs no torch.
    from teacher.service import TeacherService
    from tutelage.rpc.server import serve

    asyncio.run(serve(TeacherService(settings), settings.server))
