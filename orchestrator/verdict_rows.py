"""What judges said, kept for good: a verdict that was paid for once is not asked for again, also after a restart."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine

from orchestrator import schema as s
from orchestrator.database import now_us, reading
from orchestrator.rows import insert_or_ignore, uninterrupted
from tutelage.domain.canonical import content_hash


def question_id(base_url: str, model: str, prompt: str) -> str:
    """Names what a judge is asked, by the endpoint, the model and every word of the prompt."""
    return content_hash(["verdict", base_url, model, prompt])


class VerdictRows:
    """Reads and writes of verdicts; every method is one transaction."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reading = reading(engine)

    @uninterrupted
    async def verdict(self, asked: str) -> float | None:
        """What was said to a question; None when it was never asked."""
        query = select(s.judge_verdicts.c.verdict).where(s.judge_verdicts.c.asked == asked)
        async with self._reading.connect() as connection:
            found = await connection.scalar(query)
        return None if found is None else float(found)

    @uninterrupted
    async def keep(self, asked: str, judge: str, verdict: float) -> None:
        """Keeps a verdict; the first one stands."""
        row = {"asked": asked, "judge": judge, "verdict": verdict, "at": now_us()}
        async with self._engine.begin() as connection:
            await connection.execute(insert_or_ignore(connection, s.judge_verdicts, row))
