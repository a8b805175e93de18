"""The reconciler: whatever hint, claim or lease was lost, it acts instead, a little later.

Every pass is a handful of idempotent updates over the rows alone; none needs the broker's state. Judging another
dispatcher dead is for one that has itself renewed without a gap for the liveness time: after an outage of the database
everybody's heartbeat is old.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import asyncpg
import structlog

from dispatcher.claims import Claims
from dispatcher.core.conclude import Held
from dispatcher.heartbeat import Heartbeat
from dispatcher.hints import Hints
from dispatcher.lanes import Lanes
from dispatcher.settlement import Outcome, Settlement
from infra.settings import Settings
from infra.store import deliveries, upkeep
from infra.store import statements as sql
from infra.store.store import Store, transaction_patience_s
from infra.telemetry import Telemetry
from schemas.deliveries import Status
from schemas.errors import StoreError

log = structlog.get_logger(__name__)


class Reconciler:
    """Runs its passes on every dispatcher; the passes skip rows that another one is working on."""

    def __init__(
        self,
        store: Store,
        claims: Claims,
        lanes: Lanes,
        settlement: Settlement,
        hints: Hints,
        heartbeat: Heartbeat,
        telemetry: Telemetry,
        settings: Settings,
    ) -> None:
        self._store = store
        self._claims = claims
        self._lanes = lanes
        self._settlement = settlement
        self._hints = hints
        self._heartbeat = heartbeat
        self._telemetry = telemetry
        self._settings = settings
        self._liveness_s = heartbeat.times.liveness_s
        self._patience_s = transaction_patience_s(settings.database_timeout_s)

    async def run(self) -> None:
        """Reconcile for ever: what is found by a small index once a period, what takes a scan once a grace."""
        loop = asyncio.get_running_loop()
        scan_at = loop.time()
        while True:
            await asyncio.sleep(self._settings.reconcile_period_s)
            await self.reconcile()
            if loop.time() >= scan_at:
                await self.scan()
                scan_at = loop.time() + self._settings.reconcile_grace_s

    async def reconcile(self) -> None:
        """Sessions and claims that were lost, dead dispatchers, lost hints, unpublished dead letters."""
        await self._each(
            self._end_stalled_sessions,
            self._hold_lost_claims,
            self._free_leases,
            self._free_claims,
            self._hold_overdue,
        )
        self._count("dead_letters", await self._hints.publish_dead_letters())

    async def scan(self) -> None:
        """What only a crash between two transactions of an operator's action can leave."""
        await self._each(self._end_orphaned, self._hold_open_backlogs)

    async def _each(self, *passes: Callable[[], Awaitable[None]]) -> None:
        """Each pass by itself: one that the database does not finish in time keeps no other from running."""
        for reconcile in passes:
            try:
                await reconcile()
            except StoreError as error:
                log.warning("reconciler.retry", what=reconcile.__name__.strip("_"), error=str(error))

    async def _end_stalled_sessions(self) -> None:
        """Of processes that stand still amid a transaction: nobody else could work on what they have locked."""
        async with self._store.connection() as connection:
            ended = await connection.fetch(upkeep.END_STALLED_SESSIONS, self._patience_s)
        self._count("stalled_sessions", len(ended))

    async def _hold_lost_claims(self) -> None:
        await self.hold_lost_claims(age_s=2 * self._settings.database_timeout_s)

    async def hold_lost_claims(self, *, age_s: float) -> None:
        """Claims of ours, older than `age_s`, that are not in hand: the answer to their commit was lost."""
        lost = await self._claims.lost(set(self._lanes.in_hand), age_s=age_s)
        for claim in lost:
            if claim.delivery not in self._lanes.in_hand:
                self._lanes.place(claim.subscription, len(claim.content.data))
                self._lanes.take(claim)
                self._settlement.add(Outcome(claim, Held("the answer to its claim was lost"), None))
        self._count("lost_claims", len(lost))

    async def _free_leases(self) -> None:
        """The leases of the dead, and their roles."""
        async with self._store.connection() as connection:
            leases = await connection.fetch(upkeep.FREE_DEAD_LEASES, self._heartbeat.incarnation, self._liveness_s)
            roles = await connection.fetch(upkeep.FREE_DEAD_ROLES, self._heartbeat.incarnation, self._liveness_s)
        self._count("dead_leases", len(leases))
        self._count("dead_roles", len(roles))

    async def _free_claims(self) -> None:
        """The claims of the dead, and those older than the cap."""
        cap_s = self._heartbeat.times.claim_cap_s
        judge = self._heartbeat.incarnation
        await self._in_batches("dead_claims", upkeep.FREE_DEAD_CLAIMS, judge, self._liveness_s, cap_s)

    async def _hold_overdue(self) -> None:
        """Retries whose hint is late beyond the grace: with a wiped broker, all of them."""
        await self._in_batches("overdue_retries", upkeep.HOLD_OVERDUE, self._settings.reconcile_grace_s)

    async def _in_batches(self, what: str, statement: str, *arguments: object) -> None:
        """Run a statement that holds rows until it finds no more, and hold the endpoints of those that it held."""
        limit = number = self._settings.batch_rows
        while number == limit:
            async with self._store.transaction() as connection:
                rows = await connection.fetch(statement, *arguments, limit)
            await self._hold_endpoints({row["subscription_id"] for row in rows if row["status"] == Status.HELD})
            number = len(rows)
            self._count(what, number)

    async def _end_orphaned(self) -> None:
        """Waiting rows of subscriptions that are disabled or deleted."""
        limit = self._settings.batch_rows
        for statement in upkeep.END_ORPHANED:
            number = limit
            while number == limit:
                async with self._store.transaction() as connection:
                    ended = await connection.fetch(statement, limit)
                    dead = sorted(row["id"] for row in ended if row["status"] == Status.DEAD)
                    if dead:
                        await deliveries.bury(connection, dead)
                number = len(ended)
                self._count("orphaned", number)

    async def _hold_open_backlogs(self) -> None:
        """Held rows behind an open endpoint: nobody would feed them."""
        async with self._store.connection() as connection:
            rows = await connection.fetch(upkeep.OPEN_WITH_BACKLOG)
        await self._hold_endpoints({row["id"] for row in rows})
        self._count("open_backlogs", len(rows))

    async def _hold_endpoints(self, subscriptions: set[UUID]) -> None:
        if subscriptions:
            async with self._store.transaction() as connection:
                await hold_endpoints(connection, sorted(subscriptions))

    def _count(self, what: str, number: int) -> None:
        if number:
            self._telemetry.metrics.reconciled.add(number, {"what": what})
            log.warning("reconciled", what=what, number=number)


async def hold_endpoints(connection: asyncpg.Connection, subscriptions: Sequence[UUID]) -> None:
    """Set the mode of these endpoints (in order of id) to held, under the lock that closes the feeder's race."""
    await connection.execute(sql.LOCK_ENDPOINTS, subscriptions)
    await connection.execute(sql.HOLD_ENDPOINTS, subscriptions)
