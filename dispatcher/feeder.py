"""The feeder: the backlogs of held endpoints, each fed by the one dispatcher that holds its lease.

An endpoint's rows are taken in order of id, live ones before replays, as many as it takes now. When its backlog is
empty it becomes open again, checked under the lock that every hold takes, so that no held row is left behind.
"""

import asyncio
from uuid import UUID

import structlog

from dispatcher.claims import Claims
from dispatcher.due import room_for_claims
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import SubscriptionIndex
from dispatcher.lanes import Lanes
from infra.settings import Settings
from infra.store import statements as sql
from infra.store.store import Store
from schemas.errors import StoreError

log = structlog.get_logger(__name__)

_LEASES_AT_ONCE = 100  # of those free: the others are left for the rest of the fleet


class Feeder:
    """Leases held endpoints and feeds them."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        index: SubscriptionIndex,
        lanes: Lanes,
        heartbeat: Heartbeat,
        settings: Settings,
    ) -> None:
        self._store = store
        self._claims = claims
        self._index = index
        self._lanes = lanes
        self._heartbeat = heartbeat
        self._settings = settings
        self._mine: set[UUID] = set()
        self._others: set[UUID] = set()  # held too, but another dispatcher's to feed
        self._hungry: set[UUID] = set()
        self._wake = asyncio.Event()

    def nudge(self, subscription: UUID) -> None:
        """An endpoint has room, or was just held: look at it now, not at the next period."""
        if subscription not in self._others:
            self._hungry.add(subscription)
            self._wake.set()

    async def run(self) -> None:
        """Feed for ever."""
        while True:
            try:
                await self._lease()
                self._hungry.clear()
                for subscription in sorted(self._mine):
                    await self._feed(subscription)
                await self._feed_the_hungry()
            except StoreError as error:
                log.warning("feeder.retry", error=str(error))
                await asyncio.sleep(self._settings.feeder_period_s)

    async def release(self) -> None:
        """Give the leases back, for a stopping dispatcher. Best effort: they end with its heartbeat."""
        try:
            async with self._store.connection() as connection:
                await connection.execute(sql.RELEASE_LEASES, self._heartbeat.incarnation)
        except StoreError as error:
            log.warning("feeder.not_released", error=str(error))

    async def _feed_the_hungry(self) -> None:
        """For one period, feed what asks for it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._settings.feeder_period_s
        while (left_s := until - loop.time()) > 0:
            self._wake.clear()
            hungry, self._hungry = self._hungry, set()
            if not hungry <= self._mine:
                return  # somebody was just held: lease it first
            for subscription in sorted(hungry):
                await self._feed(subscription)
            if not self._hungry:
                try:
                    async with asyncio.timeout(left_s):
                        await self._wake.wait()
                except TimeoutError:
                    return

    async def _lease(self) -> None:
        times = self._heartbeat.times
        async with self._store.transaction() as connection:
            await self._index.refresh(connection)
            await connection.fetch(
                sql.LEASE_ENDPOINTS, self._heartbeat.incarnation, times.liveness_s - times.margin_s, _LEASES_AT_ONCE
            )
            held = await connection.fetch(sql.HELD_ENDPOINTS)
        self._lanes.held = {row["id"] for row in held}
        self._mine = {row["id"] for row in held if row["feeder"] == self._heartbeat.incarnation}
        self._others = {row["id"] for row in held if row["feeder"] is not None} - self._mine

    async def _feed(self, subscription: UUID) -> None:
        endpoint = self._index.get(subscription)
        if endpoint is not None and endpoint.blocked is not None:
            return  # its backlog waits for an operator
        limit = min(self._lanes.room_of(subscription), room_for_claims(self._lanes, self._settings))
        if endpoint is not None and limit > 0:
            claims = await self._claims.held(subscription, limit)
            for claim in claims:
                self._lanes.place(claim.subscription, len(claim.data))
                self._lanes.take(claim)
                self._lanes.submit(claim)
            if claims:
                return
        if not self._lanes.in_hand_of(subscription):
            await self._close(subscription)

    async def _close(self, subscription: UUID) -> None:
        """Open again, if nothing is held any more."""
        async with self._store.transaction() as connection:
            if await connection.fetchval(sql.LOCK_LEASE, self._heartbeat.incarnation, subscription) is None:
                return
            opened = await connection.fetchval(sql.CLOSE_BACKLOG, self._heartbeat.incarnation, subscription)
        if opened is not None:
            self._mine.discard(subscription)
            self._lanes.held.discard(subscription)
