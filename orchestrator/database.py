"""The database: opened by URL, migrated at start, every writing transaction a writer from its start on SQLite.

On PostgreSQL a silent peer is given up on either side: a transaction of an orchestrator that was stopped, or whose
machine is gone, is ended by the server between two statements, and where the server's timeout does not count by whoever
wants to take over its run, so that its locks keep no other from doing so; and a server that does not answer any more is
a lost connection within half a minute.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, func, make_url, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import await_only

from orchestrator.config import OrchestratorSettings

logger = logging.getLogger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SILENT_S = 10.0
"""Seconds after which PostgreSQL ends a transaction whose client sends nothing; below the lease of a run."""
PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    "application_name": "tutelage-orchestrator",
}
"""libpq's own names; seconds, and milliseconds for `tcp_user_timeout`. What the URL says stands."""
UPGRADE_LOCK = int.from_bytes(b"tutelage")
"""PostgreSQL's advisory lock of whoever upgrades the schema."""


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def to_datetime(us: int) -> datetime:
    """An aware time from microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=us)


def database_url(settings: OrchestratorSettings) -> str:
    """The URL with the asynchronous driver that is built in; a SQLite file's folder is made."""
    url = settings.database_url
    if url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        return f"sqlite+aiosqlite:///{(settings.data_dir / 'orchestrator.sqlite').resolve()}"
    for prefix, driver in (
        ("sqlite:", "sqlite+aiosqlite:"),
        ("postgresql:", "postgresql+psycopg:"),
        ("postgres:", "postgresql+psycopg:"),
    ):
        if url.startswith(prefix):
            return driver + url.removeprefix(prefix)
    return url


def open_engine(url: str, silent_s: float = SILENT_S) -> AsyncEngine:
    """An engine for SQLite (WAL, BEGIN IMMEDIATE) or PostgreSQL."""
    if not url.startswith("sqlite"):
        return _postgres(url, silent_s)
    engine = create_async_engine(url, connect_args={"timeout": 60})

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling would begin late and read before it locks.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in ("busy_timeout=60000", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        _write_ahead(cursor)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begun(connection: Connection) -> None:
        only_reads = connection.get_execution_options().get("only_reads", False)
        connection.exec_driver_sql("BEGIN" if only_reads else "BEGIN IMMEDIATE")

    return engine


def _write_ahead(cursor: Any) -> None:
    """Switches the file to a write-ahead log, which SQLite refuses at once while another begins to write to it."""
    deadline = time.monotonic() + 60
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        else:
            return
        await_only(asyncio.sleep(0.05))


def _postgres(url: str, silent_s: float) -> AsyncEngine:
    given = make_url(url).query
    engine = create_async_engine(
        url,
        pool_pre_ping=True,
        connect_args={name: value for name, value in PATIENCE.items() if name not in given},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        # Not as a start-up option, which poolers in between refuse and which would replace the URL's own.
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(f"SET idle_in_transaction_session_timeout = {int(silent_s * 1000)}")
        # Well below it: what a stopped orchestrator had waiting for a lock must not get it in turn, for as long again.
        cursor.execute(f"SET lock_timeout = {int(silent_s * 300)}")
        cursor.close()
        connection.autocommit = False

    return engine


_SILENT = text("""
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
    AND application_name = current_setting('application_name')
    AND state <> 'idle' AND wait_event = 'ClientRead'
    AND state_change < clock_timestamp() - NULLIF(current_setting('idle_in_transaction_session_timeout'), '0')::interval
""")


async def end_silent(engine: AsyncEngine) -> int:
    """Ends PostgreSQL's sessions of orchestrators that fell silent in a transaction and that its timeout does not end.

    The timeout of idle transactions (PostgreSQL 17's `transaction_timeout` would do) counts only once a statement has
    come to its end, and nothing after it: neither while a statement has come in part, or a pipeline without its end,
    nor when a request for results follows the end of a pipeline, as psycopg sends one after many rows. Theirs are the
    sessions of this one's user and `application_name`. Where a pooler has lost this session's own timeout, none is.

    Returns how many were ended.
    """
    async with engine.begin() as connection:
        ended = (await connection.execute(_SILENT)).all()
    if ended:
        logger.warning("sessions of orchestrators that fell silent in a transaction: %d ended", len(ended))
    return len(ended)


def reading(engine: AsyncEngine) -> AsyncEngine:
    """The same engine for transactions that only read: on SQLite they wait for no writer."""
    return engine.execution_options(only_reads=True)


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Orchestrators that start at once upgrade one after the other, as SQLite's transactions do by themselves; an
        # upgrade may take its time.
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(select(func.pg_advisory_xact_lock(UPGRADE_LOCK)))
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


async def migrate(engine: AsyncEngine) -> None:
    """Brings the schema to this version's; a database of a newer version is refused by Alembic."""
    async with engine.begin() as connection:
        await connection.run_sync(_upgrade)
