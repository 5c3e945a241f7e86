"""How busy a run keeps its teacher and students: counted as it goes, added to the store every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from sqlalchemy.exc import SQLAlchemyError

from orchestrator.leasing import LeaseLost
from orchestrator.meter import Meter
from orchestrator.store import Store
from orchestrator.store_fault import StoreFault

logger = logging.getLogger(__name__)

WRITE_S = 10.0
"""Seconds between two writes."""
TEACHER = "teacher"


def student(name: str) -> str:
    """What a student is called among the actors."""
    return f"student/{name}"


class Utilisation:
    """One for a run that is driven; to be made where the event loop runs."""

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._meter = Meter()
        self._time = asyncio.get_running_loop().time

    def room(self, actor: str, slots: int) -> None:
        """From now on there are so many slots."""
        self._meter.room(actor, slots, self._time())

    def start(self, actor: str) -> None:
        """One more slot is in use."""
        self._meter.start(actor, self._time())

    def stop(self, actor: str) -> None:
        """One slot less is in use."""
        self._meter.stop(actor, self._time())

    @contextlib.contextmanager
    def busy(self, actor: str) -> Iterator[None]:
        """A slot is in use meanwhile."""
        self.start(actor)
        try:
            yield
        finally:
            self.stop(actor)

    async def write_regularly(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(WRITE_S)
            await self.write()

    async def write(self) -> None:
        """Adds what was counted since the last time; a figure that is lost with the database stops no run."""
        try:
            await self._store.add_utilisation(self._run_id, self._meter.take(self._time()))
        except (StoreFault, SQLAlchemyError, LeaseLost, OSError) as error:
            logger.warning("utilisation was not written: %s", error)
