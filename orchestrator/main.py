"""Serves an orchestrator."""

from __future__ import annotations

import asyncio

from orchestrator.config import OrchestratorSettings
from orchestrator.service import OrchestratorService
from tutelage.rpc.server import serve


def run(settings: OrchestratorSettings) -> None:
    """Blocks until SIGTERM or SIGINT; unfinished runs go on at the next start."""
    asyncio.run(serve(OrchestratorService(settings), settings.server))
