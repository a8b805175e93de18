"""Announcements: operational events are published on the bus of all other events, as soon as they are committed.

Each dispatcher looks once in a feeder's period, at a table that is nearly always empty. One mechanism, so that nothing
has to be made up for: what could not be published stands there still.
"""

import asyncio
from uuid import UUID

import asyncpg
import orjson
import structlog

from infra.broker.base import Broker, Outgoing, ToEvents
from infra.settings import Settings
from infra.store import operational
from infra.store.store import Store
from schemas.errors import StoreError
from schemas.events import build_event, event_message
from schemas.ids import SUBSCRIPTION, key_ms, public_id
from schemas.messages import Message
from schemas.operational import OPERATIONAL_SOURCE, public_data

log = structlog.get_logger(__name__)


class Announcements:
    """Publishes with confirm, then deletes the row. Published twice, it has the same id and is admitted once."""

    def __init__(self, broker: Broker, store: Store, settings: Settings) -> None:
        self._broker = broker
        self._store = store
        self._settings = settings

    async def run(self) -> None:
        """Publish for ever; when the broker or the database is away, look again after a while."""
        while True:
            try:
                found, failed = await self.publish()
            except StoreError as error:
                log.warning("announcements.retry", error=str(error))
                found, failed = 0, True
            if failed:
                await asyncio.sleep(self._settings.reconcile_period_s)
            elif found < self._settings.batch_rows:
                await asyncio.sleep(self._settings.feeder_period_s)

    async def publish(self) -> tuple[int, bool]:
        """One batch: how many there were, and whether any was not confirmed. Raises StoreError."""
        async with self._store.transaction() as connection:
            rows = await operational.take(connection, self._settings.batch_rows)
            if not rows:
                return 0, False
            errors = await self._broker.publish_many(
                [Outgoing(ToEvents(row["type"]), _message(row)) for row in rows],
                timeout_s=self._settings.broker_timeout_s,
            )
            await operational.forget(
                connection, [row["id"] for row, error in zip(rows, errors, strict=True) if error is None]
            )
        refused = [error for error in errors if error is not None]
        if refused:
            log.warning("announcements.failed", failed=len(refused), of=len(rows), error=str(refused[0]))
        return len(rows), bool(refused)


def _message(row: asyncpg.Record) -> Message:
    """An operational event as it travels. All of it is a function of its row."""
    event = build_event(
        type=row["type"],
        data=orjson.dumps(public_data(row["data"])),
        external_id=str(row["id"]),
        source=OPERATIONAL_SOURCE,
        time=row["created_at"],
        tenant=row["tenant"],
        subject=public_id(SUBSCRIPTION, UUID(row["data"]["subscription_id"])),
        accepted_ms=key_ms(row["id"]),
        operational=True,
    )
    return event_message(event)
