"""The durable store of runs: what is written here has happened, and each reward is written once."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError

from orchestrator.database import SILENT_S, migrate, open_engine
from orchestrator.evaluation_rows import EvaluationRows
from orchestrator.learning_rows import LearningRows
from orchestrator.lease_rows import LeaseRows
from orchestrator.run_rows import RunRows
from orchestrator.store_fault import StoreFault


class Store(RunRows, LeaseRows, LearningRows, EvaluationRows):
    """All reads and writes of runs; every method is one transaction."""

    @classmethod
    async def open(cls, url: str, silent_s: float = SILENT_S) -> Store:
        """Opens and migrates the database; `silent_s` as in `open_engine`. StoreFault where it cannot be used."""
        engine = open_engine(url, silent_s)
        try:
            await migrate(engine)
        except DBAPIError as error:
            await engine.dispose()
            raise StoreFault.of(error, engine.url.render_as_string(hide_password=True)) from None
        return cls(engine)

    async def close(self) -> None:
        """Closes all connections."""
        await self.engine.dispose()
