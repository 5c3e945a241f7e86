"""Writes of one run's evaluations, gathered: many that happen at about the same time share a transaction.

A transaction costs more than a row, and an orchestrator of a thousand students writes hundreds of rows a second. What
is awaited is durable; what is not (that an evaluation began) is written before what comes after it.
"""

from __future__ import annotations

import asyncio

from orchestrator.evaluation_entries import Begun, Ended, Entry, TriedAgain
from orchestrator.store import Store

LINGER_S = 0.05
"""Seconds that an entry waits for others."""
MOST = 400
"""Entries of one transaction."""


class Ledger:
    """One for each run that is driven."""

    def __init__(self, store: Store, run_id: str, linger_s: float = LINGER_S) -> None:
        self._store, self._run_id, self._linger_s = store, run_id, linger_s
        self._entries: list[tuple[Entry, asyncio.Future[bool] | None]] = []
        self._writing: asyncio.Task[None] | None = None

    def note(self, entry: Begun | TriedAgain) -> None:
        """Written soon; lost only with everything after it."""
        self._add(entry, None)

    async def end(self, entry: Ended) -> bool:
        """Whether this was the first outcome of its evaluation; returns when it is written."""
        written: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._add(entry, written)
        return await written

    async def close(self) -> None:
        """Writes what is left."""
        while self._writing is not None:
            await asyncio.wait({self._writing})

    def _add(self, entry: Entry, written: asyncio.Future[bool] | None) -> None:
        self._entries.append((entry, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())

    async def _write(self) -> None:
        try:
            while self._entries:
                if len(self._entries) < MOST:
                    await asyncio.sleep(self._linger_s)
                batch, self._entries = self._entries[:MOST], self._entries[MOST:]
                try:
                    changed = await self._store.write(self._run_id, [entry for entry, _ in batch])
                except Exception as error:
                    for _, written in batch:
                        if written is not None and not written.done():
                            written.set_exception(error)
                    continue
                for each, (_, written) in zip(changed, batch, strict=True):
                    if written is not None and not written.done():
                        written.set_result(each)
        finally:
            self._writing = None
