"""Serves an orchestrator."""

from __future__ import annotations

import asyncio
import logging

from orchestrator.config import OrchestratorSettings
from orchestrator.service import OrchestratorService
from tutelage.rpc.server import serve


def _tells_something(record: logging.LogRecord) -> bool:
    # Alembic names its context at every start; that it upgrades the tables is worth a line.
    return record.levelno > logging.INFO or str(record.msg).startswith("Running")


def run(settings: OrchestratorSettings) -> None:
    """Blocks until SIGTERM or SIGINT; unfinished runs go on at the next start."""
    logging.getLogger("alembic.runtime.migration").addFilter(_tells_something)
    asyncio.run(serve(OrchestratorService(settings), settings.server))
