"""Replays in bulk: a filter, frozen when it is asked for, that dispatchers work through a step at a time.

Each at its own rate: how far a step goes is decided under the lock on the replay's row, by the database's clock, from
what stands in the row. So the rate holds over the whole fleet, and over its restarts.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg
from sqlalchemy import func, select

from infra.store import deliveries, tables
from infra.store.history import DeliveryFilter, TimeRange, delivery_conditions
from infra.store.outcomes import Missing, Refused
from infra.store.query import Page, column_list, equal, fetch, fetch_page, fetch_value
from schemas.ids import SUBSCRIPTION, parse_id, public_id


@dataclass(frozen=True, slots=True)
class ReplayRow:
    """A replay. Of `matched` deliveries, counted at the start, so many are `replayed` or `skipped` by now.

    Skipped is what was no longer replayable when its turn came: replayed by somebody else meanwhile, or its
    subscription paused, disabled or deleted.
    """

    id: UUID
    tenant: str | None
    filter: dict[str, Any]
    state: str
    matched: int
    replayed: int
    skipped: int
    max_per_s: float
    created_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Progress:
    """What became of the deliveries that a replay has begun again. `waiting` have not ended.

    One that somebody has begun again since is not counted any more, nor one that is past its retention.
    """

    delivered: int
    dead: int
    canceled: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Running:
    """A running replay that is locked. It may begin `max_per_s` deliveries again, and has not done so `since_s`.

    Times are by the database's clock, in seconds since 1970.
    """

    id: UUID
    filter: dict[str, Any]
    cursor: UUID | None
    max_per_s: float
    since_s: float
    now_s: float


_COLUMNS = column_list(tables.replays, ReplayRow)

_INSERT = f"""
INSERT INTO replays (id, tenant, filter, state, matched, max_per_s) VALUES ($1, $2, $3, 'running', $4, $5)
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

# The next one that may begin a delivery again by now. One that another dispatcher is at is passed over.
_TAKE = """
SELECT id, filter, cursor, max_per_s, extract(epoch FROM paced_since)::float8 AS since_s,
       extract(epoch FROM clock_timestamp())::float8 AS now_s
FROM replays
WHERE state = 'running' AND id > $1 AND paced_since + make_interval(secs => 1 / max_per_s) <= clock_timestamp()
ORDER BY id
LIMIT 1
FOR UPDATE SKIP LOCKED
"""

_ADVANCE = """
UPDATE replays
SET cursor = $2, replayed = replayed + $3, skipped = skipped + $4, paced_since = to_timestamp($5)
WHERE id = $1
"""

# What was matched and never came by was replayed by somebody else, or is past its retention.
_COMPLETE = """
UPDATE replays
SET state = 'completed', ended_at = clock_timestamp(), skipped = greatest(skipped, matched - replayed)
WHERE id = $1
"""

_PROGRESS = "SELECT status, count(*) FROM deliveries WHERE replay_id = $1 GROUP BY status"

_CANCEL = f"""
UPDATE replays SET state = 'canceled', ended_at = clock_timestamp() WHERE id = $1 AND state = 'running'
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table


async def create(
    conn: asyncpg.Connection, *, replay_id: UUID, wanted: DeliveryFilter, max_per_s: float, now: datetime
) -> ReplayRow:
    """Store a replay of what matches now. Deliveries created later are not part of it."""
    frozen = freeze(wanted, now=now)
    matched = await count(conn, frozen)
    record = await conn.fetchrow(_INSERT, replay_id, wanted.tenant, encode_filter(frozen), matched, max_per_s)
    assert record is not None
    return ReplayRow(**record)


def freeze(wanted: DeliveryFilter, *, now: datetime) -> DeliveryFilter:
    """The filter of what there is by now, and nothing later."""
    before = min(wanted.created.before, now) if wanted.created.before else now
    return replace(wanted, created=TimeRange(wanted.created.after, before))


async def count(conn: asyncpg.Connection, wanted: DeliveryFilter) -> int:
    matched: int = await fetch_value(conn, select(func.count()).where(*delivery_conditions(wanted)))
    return matched


async def progress(conn: asyncpg.Connection, replay_id: UUID) -> Progress:
    by_status = {record["status"]: record["count"] for record in await conn.fetch(_PROGRESS, replay_id)}
    delivered, dead, canceled = (by_status.pop(status, 0) for status in ("delivered", "dead", "canceled"))
    return Progress(delivered, dead, canceled, waiting=sum(by_status.values()))


async def get(conn: asyncpg.Connection, replay_id: UUID) -> ReplayRow | Missing:
    record = await conn.fetchrow(f"SELECT {_COLUMNS} FROM replays WHERE id = $1", replay_id)  # noqa: S608
    return Missing() if record is None else ReplayRow(**record)


async def list_page(
    conn: asyncpg.Connection, *, tenant: str | None, state: str | None, after: UUID | None, limit: int
) -> Page[ReplayRow]:
    table = tables.replays
    conditions = equal((table.c.tenant, tenant), (table.c.state, state))
    return await fetch_page(conn, table, ReplayRow, conditions, after=after, limit=limit)


async def cancel(conn: asyncpg.Connection, replay_id: UUID) -> ReplayRow | Missing | Refused:
    """Stop a running replay. What it has begun again goes on."""
    record = await conn.fetchrow(_CANCEL, replay_id)
    if record is not None:
        return ReplayRow(**record)
    row = await get(conn, replay_id)
    return (
        row if isinstance(row, Missing) else Refused(f"the replay is {row.state}; only a running one can be canceled")
    )


async def take(conn: asyncpg.Connection, *, after: UUID) -> Running | None:
    """Lock the next running replay whose turn has come, by id. None when there is none after that one."""
    record = await conn.fetchrow(_TAKE, after)
    return None if record is None else Running(**record)


async def advance(conn: asyncpg.Connection, running: Running, *, count: int, since_s: float) -> None:
    """Begin the next `count` deliveries of a replay that was taken again; its next step is reckoned from `since_s`.

    The cursor only moves up, so a delivery that is replayed and dies again is not taken twice.
    """
    ids = await _next_ids(conn, decode_filter(running.filter), running.cursor, count)
    if ids:
        replayed = await deliveries.replay(conn, ids, replay_id=running.id)
        await conn.execute(_ADVANCE, running.id, ids[-1], len(replayed), len(ids) - len(replayed), since_s)
    if len(ids) < count:
        await conn.execute(_COMPLETE, running.id)


async def _next_ids(conn: asyncpg.Connection, wanted: DeliveryFilter, cursor: UUID | None, count: int) -> list[UUID]:
    table = tables.deliveries
    statement = select(table.c.id).where(*delivery_conditions(wanted)).order_by(table.c.id).limit(count)
    if cursor is not None:
        statement = statement.where(table.c.id > cursor)
    return [record["id"] for record in await fetch(conn, statement)]


def encode_filter(wanted: DeliveryFilter) -> dict[str, Any]:
    """A filter as it is stored: its fields as they are shown, moments by ISO 8601."""
    died = {"died_after": wanted.died.after, "died_before": wanted.died.before}
    return {
        "subscription_id": wanted.subscription_id and public_id(SUBSCRIPTION, wanted.subscription_id),
        "tenant": wanted.tenant,
        "event_type": wanted.event_type,
        "status": list(wanted.statuses),
        "created_after": wanted.created.after and wanted.created.after.isoformat(),
        "created_before": wanted.created.before and wanted.created.before.isoformat(),
    } | {name: moment.isoformat() for name, moment in died.items() if moment is not None}


def decode_filter(stored: dict[str, Any]) -> DeliveryFilter:
    """The filter behind what `encode_filter` made."""

    def moment(name: str) -> datetime | None:
        return datetime.fromisoformat(stored[name]) if stored.get(name) else None

    return DeliveryFilter(
        subscription_id=parse_id(SUBSCRIPTION, stored["subscription_id"]) if stored["subscription_id"] else None,
        tenant=stored["tenant"],
        event_type=stored["event_type"],
        statuses=tuple(stored["status"]),
        created=TimeRange(moment("created_after"), moment("created_before")),
        died=TimeRange(moment("died_after"), moment("died_before")),
    )
