"""Starts a student and serves until SIGTERM."""

from __future__ import annotations

import asyncio

from student.config import StudentSettings
from student.service import Student
from tutelage.rpc.server import serve


def run(settings: StudentSettings) -> None:
    """Blocks until SIGTERM or SIGINT. Raises InvalidInput for settings that cannot be served."""
    asyncio.run(serve(Student(settings), settings.server))
