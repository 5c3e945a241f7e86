"""The logical students: a channel each, how many evaluations each takes at once, and who answered last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from orchestrator import metrics
from tutelage.client import StudentClient
from tutelage.domain.description import StudentDescription
from tutelage.domain.errors import NotFound, TutelageError, Unavailable
from tutelage.rpc.config import ChannelSettings


class Students:
    """Shared by all runs, so that together they never ask a student for more than its slots."""

    def __init__(self, settings: Mapping[str, ChannelSettings], describe_timeout_s: float) -> None:
        self.settings = settings
        self._timeout_s = describe_timeout_s
        self._clients = {name: StudentClient(channel) for name, channel in settings.items()}
        self._slots = dict.fromkeys(settings, 1)
        self._busy = dict.fromkeys(settings, 0)
        self._listeners: set[Callable[[], None]] = set()

    def client(self, name: str) -> StudentClient:
        """The student's client; NotFound lists those there are."""
        try:
            return self._clients[name]
        except KeyError:
            raise NotFound("student", name, f"configured are: {', '.join(self._clients)}") from None

    async def describe(self, name: str) -> StudentDescription:
        """What the student says it is; Unavailable names it and its address when it does not answer."""
        try:
            description = await self.client(name).describe(timeout_s=self._timeout_s)
        except Unavailable as error:
            self.seen(name, False)
            address = self.settings[name].address
            raise Unavailable(f"student {name!r} at {address} does not answer: {error}", error.retry_after_s) from None
        self.seen(name, True)
        self.set_slots(name, description.slots)
        return description

    async def describe_all(self, names: Mapping[str, object] | None = None) -> dict[str, StudentDescription | None]:
        """Every student's description; None for one that does not answer."""

        async def one(name: str) -> StudentDescription | None:
            try:
                return await self.describe(name)
            except TutelageError:
                return None

        chosen = list(names or self._clients)
        return dict(zip(chosen, await asyncio.gather(*(one(name) for name in chosen)), strict=True))

    def seen(self, name: str, reachable: bool) -> None:
        """Notes whether the student answered."""
        metrics.STUDENT_REACHABLE.labels(name).set(float(reachable))

    def set_slots(self, name: str, slots: int) -> None:
        """How many evaluations the student takes at once."""
        if name in self._slots and self._slots[name] != max(1, slots):
            self._slots[name] = max(1, slots)
            self._changed()

    @property
    def slots(self) -> Mapping[str, int]:
        """Slots by student."""
        return dict(self._slots)

    def free(self) -> dict[str, int]:
        """Free slots by student."""
        return {name: max(0, slots - self._busy[name]) for name, slots in self._slots.items()}

    def take(self, name: str) -> None:
        """Occupies a slot."""
        self._busy[name] += 1

    def give(self, name: str) -> None:
        """Frees a slot and tells everyone who waits for one."""
        self._busy[name] -= 1
        self._changed()

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Calls the listener when slots change, until the returned function is called."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def _changed(self) -> None:
        for listener in list(self._listeners):
            listener()

    async def close(self) -> None:
        """Closes all channels."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))
