"""Many deliveries at once, as an hour of traffic would have left them; by COPY, 100,000 of them in a few seconds."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from schemas.ids import SUBSCRIPTION, delivery_key, event_key, parse_id

_EVENT = ("id", "tenant", "source", "external_id", "type", "time", "data")
_DELIVERY = ("id", "event_id", "subscription_id", "tenant", "event_type", "status", "attempts", "cycle", "fence")


async def add_deliveries(
    database_url: str,
    subscription: str,
    number: int,
    *,
    status: str = "held",
    cycle: int = 0,
    data: bytes = b'{"n":1}',
) -> list[UUID]:
    """Their ids, in order. With held ones, the endpoint of the subscription (a public id) is held, too."""
    owner = parse_id(SUBSCRIPTION, subscription)
    at = datetime.now(UTC) - timedelta(hours=1)
    events, deliveries = [], []
    for place in range(number):
        external_id = str(uuid7())
        event = event_key(int(at.timestamp() * 1000) + place // 10, "default", "tests", external_id)
        events.append((event, "default", "tests", external_id, "order.created", at, data))
        key = delivery_key(event, owner)
        deliveries.append((key, event, owner, "default", "order.created", status, 0, cycle, cycle))
    connection = await asyncpg.connect(database_url)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM subscriptions WHERE id = $1 FOR NO KEY UPDATE", owner)
            await connection.copy_records_to_table("events", records=events, columns=_EVENT)
            await connection.copy_records_to_table("deliveries", records=deliveries, columns=_DELIVERY)
            if status == "held":
                await connection.execute("UPDATE subscriptions SET mode = 'held' WHERE id = $1", owner)
    finally:
        await connection.close()
    return sorted(key for key, *_ in deliveries)
