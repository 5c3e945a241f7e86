"""The durable store of runs: what is written here has happened, and each reward is written once."""

from __future__ import annotations

from alembic.util.exc import CommandError
from sqlalchemy.exc import DBAPIError

from orchestrator.database import SILENT_S, migrate, open_engine
from orchestrator.evaluation_rows import EvaluationRows
from orchestrator.learning_rows import LearningRows
from orchestrator.lease_rows import LeaseRows
from orchestrator.run_rows import RunRows
from orchestrator.store_fault import StoreFault
from tutelage.domain.errors import PreconditionFailed


class Store(RunRows, LeaseRows, LearningRows, EvaluationRows):
    """All reads and writes of runs; every method is one transaction."""

    @classmethod
    async def open(cls, url: str, silent_s: float = SILENT_S) -> Store:
        """Opens and migrates the database; `silent_s` as in `open_engine`.

        StoreFault where it cannot be used, PreconditionFailed where a newer version has migrated it.
        """
        engine = open_engine(url, silent_s)
        shown = engine.url.render_as_string(hide_password=True)
        try:
            await migrate(engine)
        except DBAPIError as error:
            await engine.dispose()
            raise StoreFault.of(error, shown) from None
        except CommandError as error:
            await engine.dispose()
            hint = "start the version that upgraded it, or restore a backup from before"
            raise PreconditionFailed(
                f"the tables of the orchestrator's database {shown} are not of this version ({error}): {hint}"
            ) from None
        return cls(engine)

    async def close(self) -> None:
        """Closes all connections."""
        await self.engine.dispose()
