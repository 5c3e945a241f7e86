"""The logical students: where the replicas of each are, a channel to each replica, and who answered last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from orchestrator import metrics
from orchestrator.addresses import Endpoint, Resolver, endpoints, resolve_host
from orchestrator.config import StudentChannel
from tutelage.client import StudentClient
from tutelage.domain.description import StudentDescription
from tutelage.domain.errors import NotFound, TutelageError, Unavailable
from tutelage.domain.run import StudentReplica

logger = logging.getLogger(__name__)

CANCEL_S = 5.0
"""Seconds a replica has to say that it stops an evaluation nobody waits for."""
NO_REPLICA = "it has no replica"


class Students:
    """Shared by everything in an orchestrator that calls students."""

    def __init__(
        self, settings: Mapping[str, StudentChannel], describe_timeout_s: float, resolve: Resolver = resolve_host
    ) -> None:
        self.settings = settings
        self.describe_timeout_s = describe_timeout_s
        self._resolve = resolve
        self._endpoints: dict[str, dict[str, Endpoint]] = {name: {} for name in settings}
        self._clients: dict[tuple[str, str], StudentClient] = {}
        self._reachable: dict[str, bool] = {}

    def _known(self, name: str) -> StudentChannel:
        try:
            return self.settings[name]
        except KeyError:
            raise NotFound("student", name, f"configured are: {', '.join(self.settings)}") from None

    async def refresh(self, name: str) -> tuple[str, ...]:
        """Looks up where the student's replicas are; Unavailable when that cannot be told now."""
        found = await endpoints(self._known(name), self._resolve)
        self._endpoints[name] = {each.address: each for each in found}
        return tuple(self._endpoints[name])

    async def addresses(self, name: str) -> tuple[str, ...]:
        """The replicas' addresses as they were last looked up."""
        self._known(name)
        return tuple(self._endpoints[name]) or await self.refresh(name)

    def address_text(self, name: str) -> str:
        """Where the student is, for people."""
        settings = self._known(name)
        fixed = [each for each in (settings.address, *settings.addresses) if each]
        return ", ".join(fixed) or ", ".join(self._endpoints[name]) or str(settings.addresses_file)

    def replicas(self, name: str) -> tuple[StudentReplica, ...]:
        """Where the student's replicas were when they were last looked up, and the names their certificates carry."""
        server_name = self._known(name).server_name
        found = self._endpoints[name].values()
        return tuple(StudentReplica(each.address, server_name or each.server_name) for each in found)

    def replica(self, name: str, address: str) -> StudentClient:
        """The client of one replica."""
        client = self._clients.get((name, address))
        if client is None:
            endpoint = self._endpoints[name].get(address, Endpoint(address))
            change = {"address": address, "server_name": self._known(name).server_name or endpoint.server_name}
            client = self._clients[name, address] = StudentClient(self.settings[name].model_copy(update=change))
        return client

    async def forget(self, name: str, address: str) -> None:
        """Closes the channel to a replica that is no longer listed."""
        client = self._clients.pop((name, address), None)
        if client is not None:
            await client.close()

    async def clients(self, name: str) -> list[StudentClient]:
        """A client a replica."""
        return [self.replica(name, address) for address in await self.addresses(name)]

    async def cancel_evaluation(self, name: str, evaluation_id: str) -> None:
        """Asks every replica to stop it; best effort: whoever does not answer stops when its lease is over."""
        for client in await self.clients(name):
            try:
                await asyncio.wait_for(client.cancel_evaluation(evaluation_id), CANCEL_S)
            except (TutelageError, TimeoutError):
                continue

    async def describe(self, name: str) -> StudentDescription:
        """What the student says it is, by the first replica that answers; Unavailable names it and its address."""
        reasons: list[TutelageError] = []
        for client in await self.clients(name):
            try:
                description = await client.describe(timeout_s=self.describe_timeout_s)
            except TutelageError as error:
                # Also of one that refuses, such as for its token: the others may be set up as they should.
                reasons.append(error)
                continue
            self.seen(name, True)
            return description
        where, why = self.address_text(name), "; ".join(str(reason) for reason in reasons) or NO_REPLICA
        self.seen(name, False, why)
        wait_s = getattr(reasons[-1], "retry_after_s", None) if reasons else None
        refused = bool(reasons) and not any(isinstance(each, Unavailable) for each in reasons)
        # Waited for all the same: a token or a port is put right without whoever asks.
        raise Unavailable(f"student {name!r} at {where} {'refuses' if refused else 'does not answer'}: {why}", wait_s)

    async def describe_all(self, names: Mapping[str, object] | None = None) -> dict[str, StudentDescription | None]:
        """Every student's description; None for one that does not answer."""

        async def one(name: str) -> StudentDescription | None:
            try:
                return await self.describe(name)
            except TutelageError:
                return None

        chosen = list(names or self.settings)
        return dict(zip(chosen, await asyncio.gather(*(one(name) for name in chosen)), strict=True))

    def seen(self, name: str, reachable: bool, why: str = "") -> None:
        """Notes whether the student answered, or why not."""
        metrics.STUDENT_REACHABLE.labels(name).set(float(reachable))
        if reachable is not self._reachable.get(name, True):
            if reachable:
                logger.info("student %s answers again", name)
            else:
                logger.warning("student %s at %s does not answer: %s", name, self.address_text(name), why)
        self._reachable[name] = reachable

    async def close(self) -> None:
        """Closes all channels."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        self._clients.clear()
