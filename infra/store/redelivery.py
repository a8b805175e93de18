"""Sending an event again: to all subscriptions that it has a delivery to, or to one, which need not have had one.

A delivery that is there begins again, by the rules of a replay. One that is made is of cycle 1: an operator began it,
so it goes behind what is live, and is sent however old its event is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from infra.store import deliveries, tables
from infra.store.deliveries import DeliveryRow
from infra.store.expunging import EXPUNGED
from infra.store.outcomes import Expunged, Missing, Refused
from infra.store.query import column_list
from schemas.deliveries import ENDED
from schemas.ids import delivery_key, key_ms

_COLUMNS = column_list(tables.deliveries, DeliveryRow)

# Shared by who makes deliveries of it, and kept from who expunges it.
_LOCK_EVENT: Final = "SELECT tenant, type, expunged_at FROM events WHERE id = $1 FOR SHARE"

_DELIVERIES_OF: Final = f"""
SELECT {_COLUMNS} FROM deliveries WHERE event_id = $1 AND id > $2 AND id < $3 ORDER BY id LIMIT $4
"""  # noqa: S608 -- column names of our own table

_STATES: Final = "SELECT id, state, deleted_at IS NOT NULL AS deleted FROM subscriptions WHERE id = ANY($1)"

_LOCK_SUBSCRIPTION: Final = """
SELECT tenant, state, event_types FROM subscriptions WHERE id = $1 AND deleted_at IS NULL FOR NO KEY UPDATE
"""

_ADD: Final = f"""
INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence,
                        cycle_began_at)
VALUES ($1, $2, $3, $4, $5, 'held', 0, 1, 0, clock_timestamp())
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_HOLD_ENDPOINT: Final = "UPDATE subscriptions SET mode = 'held' WHERE id = $1 AND mode <> 'held'"


@dataclass(frozen=True, slots=True)
class Sent:
    """An event that may be sent again; locked, so that nobody expunges it meanwhile."""

    id: UUID
    tenant: str
    type: str


@dataclass(frozen=True, slots=True)
class Target:
    """A subscription that an event may be sent to; locked."""

    id: UUID
    tenant: str
    event_types: Sequence[str]


@dataclass(frozen=True, slots=True)
class Redelivered:
    """What became of one delivery: with a `reason` it was passed over."""

    row: DeliveryRow
    reason: str | None


async def lock_event(conn: asyncpg.Connection, event_id: UUID) -> Sent | Missing | Refused:
    record = await conn.fetchrow(_LOCK_EVENT, event_id)
    if record is None:
        return Missing()
    if record["expunged_at"] is not None:
        return Expunged(EXPUNGED)
    return Sent(event_id, record["tenant"], record["type"])


async def to_all(
    conn: asyncpg.Connection, event: Sent, *, after: UUID | None, limit: int
) -> tuple[list[Redelivered], UUID | None]:
    """Begin the next `limit` deliveries of an event again, in order of id; the id to go on after, if there are more.

    What cannot begin again is passed over, with the reason.
    """
    ms = key_ms(event.id)  # which its deliveries share
    first, beyond = UUID(int=ms << 80), UUID(int=(ms + 1) << 80)
    first = first if after is None else max(first, after)
    found = [record["id"] for record in await conn.fetch(_DELIVERIES_OF, event.id, first, beyond, limit + 1)]
    ids = found[:limit]
    begun = set(await deliveries.replay(conn, ids))
    rows = [DeliveryRow(**record) for record in await conn.fetch(_DELIVERIES_OF, event.id, first, beyond, len(ids))]
    passed_over = {row.subscription_id for row in rows if row.id not in begun}
    states = {record["id"]: record for record in await conn.fetch(_STATES, passed_over)} if passed_over else {}
    done = [
        Redelivered(row, None if row.id in begun else _why_not(row, states.get(row.subscription_id))) for row in rows
    ]
    return done, ids[-1] if len(found) > limit else None


def _why_not(row: DeliveryRow, subscription: asyncpg.Record | None) -> str:
    if row.status not in ENDED:
        return f"the delivery is {row.status}; only one that has ended can be sent again"
    if subscription is None or subscription["deleted"]:
        return "its subscription is deleted"
    if subscription["state"] != "enabled":
        return f"its subscription is {subscription['state']}; only to an enabled one is sent again"
    return "the delivery had not ended when its turn came"


async def again(conn: asyncpg.Connection, event: Sent, subscription_id: UUID) -> DeliveryRow | Missing | Refused:
    """Begin the delivery of an event to a subscription again; Missing where there was none."""
    key = delivery_key(event.id, subscription_id)
    if not await deliveries.replay(conn, [key]):
        return await deliveries.why_not_replayed(conn, key)
    return await deliveries.get(conn, key)


async def lock_target(conn: asyncpg.Connection, subscription_id: UUID) -> Target | Missing | Refused:
    """The subscription, locked for `add`."""
    record = await conn.fetchrow(_LOCK_SUBSCRIPTION, subscription_id)
    if record is None:
        return Missing()
    if record["state"] != "enabled":
        return Refused(f"the subscription is {record['state']}; only to an enabled one is sent again")
    return Target(subscription_id, record["tenant"], record["event_types"])


async def add(conn: asyncpg.Connection, event: Sent, target: Target) -> DeliveryRow:
    """Make the delivery of an event to a subscription of its tenant that has none. It joins the endpoint's backlog.

    It has its place in the day of its event, with which it is dropped.
    """
    key = delivery_key(event.id, target.id)
    record = await conn.fetchrow(_ADD, key, event.id, target.id, event.tenant, event.type)
    assert record is not None
    await conn.execute(_HOLD_ENDPOINT, target.id)
    return DeliveryRow(**record)
