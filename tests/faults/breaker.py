"""A hand that breaks things of a stack: which comes next follows from a seed, and that each has its turn from a bag."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from tests.faults.conftest import ProxiedStack

END_SESSIONS = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
    "AND backend_type = 'client backend' AND datname = current_database()"
)
OUTAGE_S = 60.0
STALLS_S = (5.0, 15.0, 40.0)
"""Shorter and longer than a run's lease, and longer than two pings of a connection."""


class Breaker:
    """Breaks something of a stack, at random but for its seed, and says what."""

    def __init__(self, stack: ProxiedStack, seed: int) -> None:
        self._stack, self._random = stack, random.Random(seed)
        self.broken: list[str] = []
        self.kills: Counter[str] = Counter()
        """Processes killed with -9, and ends of all of the database's connections, by what they hit."""
        self.others: Counter[str] = Counter()
        """Disturbances of traffic, by kind."""
        self._bag: list[Callable[[], str]] = []

    @property
    def killed(self) -> int:
        return self.kills.total()

    @property
    def targets(self) -> set[str]:
        """What can be killed."""
        connections = {"connections"} if self._stack.database_url else set()
        return {*self._stack.orchestrators, "teacher", "ada", "ben"} | connections

    @property
    def kinds(self) -> set[str]:
        """How traffic can be disturbed."""
        return {"cut", "slow", "stall"} | ({"away"} if self._stack.database_url else set())

    @property
    def bag_kills(self) -> int:
        """Kills after which, and one more, everything has had its turn."""
        return 2 * len(self.targets) + (len(self._stack.orchestrators) == 1)

    def pause(self) -> None:
        """Waits until the next fault is due."""
        time.sleep(self._random.uniform(0.2, 4.0))

    def break_one(self) -> None:
        """One fault; whatever it stopped is started again, mostly at once, sometimes after a while."""
        if not self._bag:
            self._bag = [self._kill(name) for name in sorted(self.targets - {"connections"}) for _ in range(2)]
            # Alone it is half of what is killed at all.
            self._bag += [self._kill("orchestrator")] if len(self._stack.orchestrators) == 1 else []
            self._bag += [self._end_sessions] * 2 if "connections" in self.targets else []
            self._bag += [self._cut, self._slow, self._stall]
            self._bag += [self._away] if "away" in self.kinds else []
            self._random.shuffle(self._bag)
        self._tell(self._bag.pop()())

    def outage(self) -> None:
        """The database is out of reach for a minute."""
        self._tell(self._away(OUTAGE_S))

    def _tell(self, done: str) -> None:
        self.broken.append(done)
        print(f"  fault {len(self.broken)}, kills {self.killed}: {done}", flush=True)

    def _kill(self, name: str) -> Callable[[], str]:
        def kill() -> str:
            self._stack.kill(name)
            self.kills[name] += 1
            away_s = self._random.choice([0.0, 0.0, 2.0])
            time.sleep(away_s)
            self._stack.start(name)
            self._stack.wait_ready(name)
            return f"kill -9 {name}, away for {away_s:g} s"

        return kill

    def _end_sessions(self) -> str:
        with psycopg.connect(self._stack.database_url, autocommit=True) as connection:
            ended = connection.execute(END_SESSIONS).fetchone()
        # None are there while the database is out of reach: that was no kill.
        self.kills["connections"] += bool(ended and ended[0])
        return f"{ended[0] if ended else 0} database connections ended"

    def _cut(self) -> str:
        name = self._random.choice(sorted(self._stack.proxies))
        self._stack.proxies[name].cut()
        self.others["cut"] += 1
        return f"connections to {name} cut"

    def _slow(self) -> str:
        name = self._random.choice(sorted(self._stack.proxies))
        self._stack.proxies[name].delay(self._random.choice([0.05, 0.5]))
        time.sleep(1.0)
        self._stack.proxies[name].delay(0.0)
        self.others["slow"] += 1
        return f"traffic to {name} delayed"

    def _stall(self) -> str:
        """Other faults go on meanwhile."""
        name, seconds = self._random.choice(sorted(self._stack.proxies)), self._random.choice(STALLS_S)
        # A database's server has ended a silent session long before, and says so to whoever still uses it.
        self._stack.proxies[name].stall(seconds, reset=name in self._stack.database_proxies)
        self.others["stall"] += 1
        return f"nothing comes through to {name} for {seconds:g} s"

    def _away(self, seconds: float = 2.0) -> str:
        proxies = self._stack.database_proxies.values()
        for each in proxies:
            each.refuse(True)
            each.cut()
        try:
            time.sleep(seconds)
        finally:
            for each in proxies:
                each.refuse(False)
        self.others["outage" if seconds >= OUTAGE_S else "away"] += 1
        return f"the database away for {seconds:g} s"
