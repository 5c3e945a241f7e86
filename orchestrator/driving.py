"""Which runs this orchestrator drives: those whose lease it got. What nobody drives is looked for all the time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from orchestrator.config import OrchestratorSettings
from orchestrator.dispatcher import Dispatcher
from orchestrator.judging import Judges
from orchestrator.leasing import Lease, LeaseLost
from orchestrator.owner import is_dead, this_owner
from orchestrator.run_violations import formula_violations
from orchestrator.runner import STORE_FAULTS, Runner
from orchestrator.store import Store
from orchestrator.store_fault import StoreFault
from tutelage.client import TeacherClient
from tutelage.domain.run import RunState

logger = logging.getLogger(__name__)


@dataclass
class Driven:
    runner: Runner
    task: asyncio.Task[None]
    heard_at: float
    """When the lease was last known to be held (monotonic)."""
    renewal: asyncio.Task[None] | None = None
    """The newest one."""
    ending: asyncio.Task[None] | None = None
    """Stops what students do for a run that was ended elsewhere."""

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """All there are."""
        return [each for each in (self.task, self.renewal, self.ending) if each is not None]


class Driving:
    """Takes leases, renews them, and gives them back."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        teacher: TeacherClient,
        settings: OrchestratorSettings,
        changed: Callable[[], Awaitable[None]],
        judges: Judges,
    ) -> None:
        self._store, self._dispatcher, self._teacher, self._settings = store, dispatcher, teacher, settings
        self._changed, self._judges = changed, judges
        self._owner = this_owner()
        self._driven: dict[str, Driven] = {}
        self._unknown: dict[str, str] = {}
        """By run, what was last logged of whom it names and nobody here knows."""
        self._look = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Takes up what nobody drives, and goes on looking."""
        await self._take_up(resumed=True)
        self._tasks = [asyncio.create_task(self._look_for_runs()), asyncio.create_task(self._renew())]

    async def stop(self) -> None:
        """Stops driving and frees the leases; students go on for theirs."""
        tasks = self._tasks + [task for each in self._driven.values() for task in each.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def runner(self, run_id: str) -> Runner | None:
        """Who drives the run here."""
        driven = self._driven.get(run_id)
        return driven.runner if driven else None

    def look(self) -> None:
        """There may be a run to take up."""
        self._look.set()

    async def take(self, run_id: str, *, resumed: bool = False, dead: str = "") -> bool:
        """Drives a run if nobody does (other than the `dead` owner) and its students are known here."""
        if run_id in self._driven:
            return False
        run = await self._store.run(run_id)
        missing = [f"student {name!r}" for name in run.config.students if name not in self._settings.students]
        missing += [f"judge {name!r}" for name in run.config.judges if name not in self._settings.judges]
        missing += [f"formula {run.config.reward.formula!r}"] if formula_violations(run.config.reward.formula) else []
        if missing:
            message = f"waits: no orchestrator that looks after it knows {', '.join(missing)}"
            # Looked at again and again, for as long as it waits.
            if self._unknown.get(run_id) != message:
                logger.error("run %s %s", run_id, message)
            self._unknown[run_id] = message
            await self._store.tell(run_id, message)
            return False
        self._unknown.pop(run_id, None)
        lease = await self._store.take(run_id, self._owner, self._settings.run_lease_s, dead=dead)
        if lease is None:
            return False
        # What may have changed before the lease was ours.
        run = await self._store.run(run_id)
        store = self._store.fenced(run_id, lease.epoch)
        if run.message:
            await store.tell(run_id, "")
        if resumed:
            await store.append(run_id, ("run_resumed", {}))
        runner = Runner(run, lease, self._store, self._dispatcher, self._teacher, self._settings, self._judges)
        task = asyncio.create_task(self._drive(runner))
        self._driven[run_id] = Driven(runner, task, time.monotonic())
        return True

    async def leave(self, run_id: str) -> None:
        """Stops driving a run here, at once."""
        driven = self._driven.get(run_id)
        if driven is not None:
            driven.task.cancel()
            await asyncio.gather(driven.task, return_exceptions=True)

    async def _drive(self, runner: Runner) -> None:
        run_id, lease = runner.run.run_id, runner.lease
        try:
            await runner.drive()
        except LeaseLost as error:
            logger.warning("%s", error)
        except StoreFault as error:
            # The database is out of reach: the rows stand, and the run is taken up again when the lease has run out.
            logger.error("run %s is not driven for now: %s", run_id, error)
        except Exception:
            logger.exception("run %s is not driven for now", run_id)
        else:
            # No longer renewed before it is given back: that would look as if somebody else had taken it.
            self._driven.pop(run_id, None)
            await self._give_back(lease)
        finally:
            self._driven.pop(run_id, None)
            cancelled = asyncio.current_task()
            if cancelled is not None and cancelled.cancelling():
                await self._give_back(lease)
        self.look()
        try:
            await self._changed()
        except STORE_FAULTS as error:
            logger.warning("runs could not be counted: %s", error)

    async def _give_back(self, lease: Lease) -> None:
        try:
            await self._store.give_back(lease)
        except STORE_FAULTS as error:
            logger.warning("the lease of run %s runs out by itself: %s", lease.run_id, error)

    async def _take_up(self, *, resumed: bool) -> None:
        for run_id, owner in await self._store.free_runs(is_dead):
            try:
                await self.take(run_id, resumed=resumed, dead=owner if is_dead(owner) else "")
            except STORE_FAULTS:
                raise
            except Exception:
                # One run that cannot be read must not keep the others from going on.
                logger.exception("run %s cannot be taken up", run_id)

    async def _look_for_runs(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._settings.run_lease_s / 3):
                    await self._look.wait()
            except TimeoutError:
                pass
            self._look.clear()
            try:
                await self._take_up(resumed=True)
                # Others on the database begin and end runs, too.
                await self._changed()
            except STORE_FAULTS as error:
                logger.error("runs could not be looked for: %s", error)

    async def _renew(self) -> None:
        """Each run by itself: one that waits for the database or for students keeps no other from its renewal."""
        lease_s = self._settings.run_lease_s
        while True:
            await asyncio.sleep(lease_s / 3)
            for driven in list(self._driven.values()):
                if driven.renewal is None or driven.renewal.done():
                    driven.renewal = asyncio.create_task(self._prolong(driven))
                elif time.monotonic() - driven.heard_at > lease_s:
                    logger.error("the lease of run %s could not be renewed in time", driven.runner.run.run_id)
                    driven.task.cancel()

    async def _prolong(self, driven: Driven) -> None:
        runner, lease_s = driven.runner, self._settings.run_lease_s
        run_id = runner.run.run_id
        try:
            found = await self._store.renew(runner.lease, lease_s)
        except STORE_FAULTS as error:
            logger.error("the lease of run %s was not renewed: %s", run_id, error)
            if time.monotonic() - driven.heard_at > lease_s:
                driven.task.cancel()
            return
        except Exception:
            logger.exception("the lease of run %s was not renewed", run_id)
            return
        driven.heard_at = time.monotonic()
        if self._driven.get(run_id) is not driven:
            return
        if not found.held:
            logger.warning("run %s is driven by another orchestrator now", run_id)
            driven.task.cancel()
        elif found.state is RunState.PAUSED:
            runner.pause()
        elif found.state.ended and not driven.task.done() and driven.ending is None:
            driven.ending = asyncio.create_task(self._ended_elsewhere(driven))

    async def _ended_elsewhere(self, driven: Driven) -> None:
        try:
            await driven.runner.cancel_evaluations()
        finally:
            driven.task.cancel()
