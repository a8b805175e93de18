"""Upkeep: replays asked for, partitions and old keys, and what the gauges show."""

import asyncio
from uuid import UUID

import structlog

from dispatcher.core.pace import replay_step
from dispatcher.heartbeat import Heartbeat
from dispatcher.lanes import Lanes
from infra.settings import Settings
from infra.store import partitions, replays, upkeep
from infra.store import statements as sql
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.errors import StoreError

log = structlog.get_logger(__name__)

_FORGET_AFTER_LIVES = 100  # a dead dispatcher's row is kept for so many liveness times, to be looked at
_KEYS_AT_ONCE = 5000
_FORGOTTEN_AT_ONCE = 500  # dead letters each with the body of a message; and replays
_GAUGE_PERIOD_S = 5.0
_BEFORE_ALL = UUID(int=0)


class Upkeep:
    """What has to be done now and then, by whichever dispatcher comes first."""

    def __init__(
        self, store: Store, lanes: Lanes, heartbeat: Heartbeat, telemetry: Telemetry, settings: Settings
    ) -> None:
        self._store = store
        self._lanes = lanes
        self._heartbeat = heartbeat
        self._telemetry = telemetry
        self._settings = settings
        self._last_replay = _BEFORE_ALL

    async def run_replays(self) -> None:
        """A step of each running replay once in the feeder's period; at once again when one had a whole batch to do."""
        while True:
            busy = False
            try:
                busy = await self._step_replays()
            except StoreError as error:
                log.warning("replays.retry", error=str(error))
            if not busy:
                await asyncio.sleep(self._settings.feeder_period_s)

    async def run_maintenance(self) -> None:
        """Partitions ahead, retention, old keys, letters, replays and dispatchers; at once and then once a period."""
        while True:
            try:
                await self._maintain()
            except StoreError as error:
                log.warning("maintenance.retry", error=str(error))
                await asyncio.sleep(self._settings.reconcile_period_s)
            else:
                await asyncio.sleep(self._settings.maintenance_period_s)

    async def run_gauges(self) -> None:
        """Look at the backlog now and then for the gauges."""
        while True:
            try:
                async with self._store.connection() as connection:
                    view = await connection.fetchrow(upkeep.BACKLOG_VIEW)
            except StoreError:
                view = None  # the gauges keep what they showed; the heartbeat logs the outage
            if view is not None:
                gauges = self._telemetry.gauges
                gauges.deliveries_held = view["held"]
                gauges.deliveries_retrying = view["retrying"]
                gauges.oldest_pending_s = view["oldest_pending_s"] or 0.0
                gauges.in_hand = len(self._lanes.in_hand)
            await asyncio.sleep(_GAUGE_PERIOD_S)

    async def _step_replays(self) -> bool:
        """A step of each; whether one did a whole batch. After one that fails, the next time goes on behind it."""
        most, busy = self._settings.batch_rows, False
        while True:
            async with self._store.transaction() as connection:
                running = await replays.take(connection, after=self._last_replay)
                if running is None:
                    self._last_replay = _BEFORE_ALL
                    return busy
                self._last_replay = running.id
                step = replay_step(running.max_per_s, since_s=running.since_s, now_s=running.now_s, most=most)
                looking = await replays.advance(connection, running, count=step.count, since_s=step.since_s)
            busy |= looking or step.count == most

    async def _maintain(self) -> None:
        settings = self._settings
        async with self._store.connection() as connection:
            await partitions.keep_partitions(
                connection,
                today=await partitions.today(connection),
                ahead_days=settings.partitions_ahead_days,
                retention_days=settings.retention_days,
            )
            dropped = _KEYS_AT_ONCE
            while dropped == _KEYS_AT_ONCE:
                dropped = await partitions.drop_old_keys(
                    connection, window_s=settings.dedupe_window_s, limit=_KEYS_AT_ONCE
                )
            retention_s = settings.retention_days * 86_400.0
            for statement, age_s in (
                (upkeep.FORGET_DEAD_LETTERS, retention_s),
                (upkeep.FORGET_REPLAYS, retention_s),
                (upkeep.FORGET_IDEMPOTENCY_KEYS, settings.idempotency_s),
            ):
                forgotten = _FORGOTTEN_AT_ONCE
                while forgotten == _FORGOTTEN_AT_ONCE:
                    forgotten = len(await connection.fetch(statement, age_s, _FORGOTTEN_AT_ONCE))
            audit_s = settings.audit_days * 86_400.0
            forgotten = _FORGOTTEN_AT_ONCE
            while forgotten == _FORGOTTEN_AT_ONCE:
                async with connection.transaction():
                    await connection.execute(upkeep.MAY_FORGET_AUDIT, str(audit_s))
                    forgotten = len(await connection.fetch(upkeep.FORGET_AUDIT, audit_s, _FORGOTTEN_AT_ONCE))
            await connection.execute(sql.FORGET_DISPATCHERS, _FORGET_AFTER_LIVES * self._heartbeat.times.liveness_s)
