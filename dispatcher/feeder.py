"""The feeder: the backlogs of held endpoints, each fed by the one dispatcher that holds its lease.

An endpoint's rows are taken in order of id, live ones before replays, as many as it takes now; many endpoints in one
statement, so that ten thousand of them cost a second and not twenty. In strict order they are taken one at a time, as
they were admitted: the next one once the one before has ended, which its settlement tells. When a backlog is empty its
endpoint becomes open again, checked under the lock that every hold takes, so that no held row is left behind.
"""

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Collection
from uuid import UUID

import asyncpg
import structlog

from dispatcher.breakers import Breakers
from dispatcher.claims import Claims, Opening
from dispatcher.clock import boot_s
from dispatcher.core.breaker import Open
from dispatcher.due import room_for_claims
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import Endpoint, SubscriptionIndex
from dispatcher.lanes import Lanes
from dispatcher.paces import Paces
from infra.settings import Settings
from infra.store import statements as sql
from infra.store.store import Store
from schemas.errors import StoreError

log = structlog.get_logger(__name__)

_LEASES_AT_ONCE = 100  # of those free: the others are left for the rest of the fleet
_BACKLOGS_AT_ONCE = 100  # in one statement


class Feeder:
    """Leases held endpoints and feeds them."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        index: SubscriptionIndex,
        lanes: Lanes,
        paces: Paces,
        breakers: Breakers,
        heartbeat: Heartbeat,
        settings: Settings,
    ) -> None:
        self._store = store
        self._claims = claims
        self._index = index
        self._lanes = lanes
        self._paces = paces
        self._breakers = breakers
        self._heartbeat = heartbeat
        self._settings = settings
        self._mine: set[UUID] = set()
        self._others: set[UUID] = set()  # held too, but another dispatcher's to feed
        self._hungry: set[UUID] = set()
        self._last = UUID(int=0)  # the backlog that was fed last: when there is not room for all, they take turns
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
                await self._feed(self._mine)
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
            await self._feed(hungry)
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
            leased = await connection.fetch(
                sql.LEASE_ENDPOINTS, self._heartbeat.incarnation, times.liveness_s - times.margin_s, _LEASES_AT_ONCE
            )
            breakers = await self._breakers.save(connection, self._heartbeat.incarnation)
            held = await connection.fetch(sql.HELD_ENDPOINTS)
        self._breakers.saved(breakers)
        now_s = boot_s()
        self._lanes.held = {row["id"] for row in held}
        self._mine = {row["id"] for row in held if row["feeder"] == self._heartbeat.incarnation}
        self._others = {row["id"] for row in held if row["feeder"] is not None} - self._mine
        self._breakers.know({row["id"]: _rest(row, now_s) for row in held})
        # A lease just taken may have had another owner since it was ours before.
        self._paces.keep(self._mine - {row["id"] for row in leased})
        for row in held:
            if row["id"] in self._mine and not self._paces.has(row["id"]):
                self._paces.begin(row["id"], full_in_s=row["full_in_s"] or 0.0)

    async def _feed(self, subscriptions: Collection[UUID]) -> None:
        """Claim from these backlogs what their endpoints take now; open the endpoints of those that are over."""
        turns = self._in_turn(subscriptions)
        while rooms := self._rooms(turns):
            with self._lanes.reserved(sum(rooms.values())):
                fed = await self._claims.held(rooms, self._openings)
            for claim in fed.claims:
                self._lanes.place(claim.subscription, len(claim.content.data))
                self._lanes.take(claim)
                self._breakers.take(claim)
                self._lanes.submit(claim)
            self._last = next(reversed(rooms))
            for one in fed.opened:
                self._paces.end(one)
                self._mine.discard(one)
                self._lanes.held.discard(one)

    def _openings(self, rooms: Collection[UUID]) -> dict[UUID, Opening]:
        """Which of the endpoints may be opened, if their backlogs prove to be over, and up to how many claims.

        Not only those of which nothing is in hand. An endpoint that always has something to do would be held for ever
        then, all that it gets be sent by one dispatcher, and each delivery be written and claimed once more than it has
        to. But with half of its room free, or it would be held again at once.
        """
        most = {one: self._most_claims_at_opening(one) for one in rooms}
        return {one: Opening(most[one], self._paces.full_in_s(one)) for one in rooms if most[one] >= 0}

    def _most_claims_at_opening(self, subscription: UUID) -> int:
        """Less than none: it stays held, whatever is claimed."""
        in_hand = self._lanes.in_hand_of(subscription)
        endpoint = self._index.get(subscription)
        if (
            endpoint is None
            or endpoint.limit is not None  # what waits for its turn waits under the lease
            or endpoint.ordered
            or self._breakers.room(subscription, in_hand=in_hand) is not None
            or self._lanes.caps.knows(subscription)  # that it is slow, or asked to be left alone; nobody else does
        ):
            return -in_hand
        return (self._lanes.room_of(endpoint) - in_hand) // 2

    def _in_turn(self, subscriptions: Collection[UUID]) -> deque[UUID]:
        """In order of id, beginning after the one that was fed last."""
        ordered = sorted(subscriptions)
        start = bisect_right(ordered, self._last)
        return deque(ordered[start:] + ordered[:start])

    def _rooms(self, turns: deque[UUID]) -> dict[UUID, int]:
        """The next backlogs to be fed, taken from `turns`, and how many of each; none when there is no room."""
        free = room_for_claims(self._lanes, self._settings)
        rooms: dict[UUID, int] = {}
        share = max(1, free // max(1, min(len(turns), _BACKLOGS_AT_ONCE)))
        while turns and free > 0 and len(rooms) < _BACKLOGS_AT_ONCE:
            subscription = turns.popleft()
            endpoint = self._index.get(subscription)
            if endpoint is None:
                rooms[subscription] = 0  # deleted: nothing is fed, and its lease is given back
            elif endpoint.blocked is None and (room := min(share, self._room(endpoint))) > 0:
                rooms[subscription] = room
                free -= room
        return rooms

    def _room(self, endpoint: Endpoint) -> int:
        """How many more of its backlog an endpoint takes now: what its cap leaves, and its pace allows soon."""
        lanes, key = self._lanes, endpoint.id
        room = lanes.room_of(endpoint)
        if endpoint.ordered:
            room = min(room, 1 - lanes.in_hand_of(key))
        if (probes := self._breakers.room(key, in_hand=lanes.in_hand_of(key))) is not None:
            room = min(room, probes)
        pace = self._paces.room(endpoint, in_hand=lanes.in_hand_of(key), waiting=lanes.waiting_of(key))
        if pace is not None:
            room = min(room, pace)
        return room


def _rest(row: asyncpg.Record, now_s: float) -> Open | None:
    """The open breaker of a row, as its last feeder left it."""
    return None if row["rest_s"] is None else Open(now_s + row["rest_s"], row["breaker_times"])
