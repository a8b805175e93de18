"""What happened: lists of events, deliveries and attempts, newest first.

The keys of all of them begin with the time, so that a key pages a list, bounds a time range and picks partitions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import asyncpg
from sqlalchemy import ColumnElement, Table, exists, func, select

from infra.store import tables
from infra.store.outcomes import Missing
from infra.store.query import PLAN_ANEW, Page, behind, columns, equal, fetch, sought
from schemas.ids import first_key_at, keys_alike, least_key_after

MAX_PAGE_BYTES: Final = 4_194_304
SCANNED_EVENTS: Final = 100_000  # for a page of a filter; no index but that by id stands on events

_KNOWN_EVENT = """
SELECT event_id, digest FROM event_keys
WHERE tenant = $1 AND source = $2 AND external_id = $3
  AND created_at >= clock_timestamp() - make_interval(secs => $4)
"""

_KNOWN_EVENTS = """
SELECT tenant, source, external_id, event_id, digest FROM event_keys
JOIN unnest($1::text[], $2::text[], $3::text[]) AS given (tenant, source, external_id)
    USING (tenant, source, external_id)
WHERE created_at >= clock_timestamp() - make_interval(secs => $4)
"""

_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event as it was admitted; `data` is the JSON text as it came, and empty where it was expunged."""

    id: UUID
    tenant: str
    source: str
    external_id: str
    type: str
    subject: str | None
    time: datetime
    data: bytes = field(repr=False)
    headers: dict[str, str] | None
    admitted_at: datetime
    expunged_at: datetime | None


@dataclass(frozen=True, slots=True)
class KnownEvent:
    """An event that was admitted, as far as tells a repeat from a conflict."""

    event_id: UUID
    digest: bytes

    def is_repeated_by(self, digest: bytes) -> bool:
        """Whether an event of its identity says the same. What was expunged has no digest: nobody knows any more."""
        return self.digest in {digest, b""}


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One POST and what came of it."""

    id: UUID
    delivery_id: UUID
    cycle: int
    number: int
    started_at: datetime
    duration_ms: int
    outcome: str
    superseded: bool
    status_code: int | None
    failure: str | None
    reason: str | None
    response_body: bytes | None = field(repr=False)
    remote_address: str | None
    url: str
    response_headers: dict[str, str] | None
    dns_ms: int | None
    connect_ms: int | None
    tls_ms: int | None
    first_byte_ms: int | None


@dataclass(frozen=True, slots=True)
class TimeRange:
    """From `after`, inclusive, to `before`, exclusive; None is open."""

    after: datetime | None = None
    before: datetime | None = None


ANY_TIME = TimeRange()


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries; None and the empty tuple ask for nothing."""

    subscription_id: UUID | None = None
    event_id: UUID | None = None
    tenant: str | None = None
    event_type: str | None = None
    statuses: tuple[str, ...] = ()
    created: TimeRange = ANY_TIME
    replay_id: UUID | None = None  # that began their cycle
    died: TimeRange = ANY_TIME  # of the dead ones, by their dead letter, which nobody has settled


@dataclass(frozen=True, slots=True)
class EventFilter:
    tenant: str | None = None
    type: str | None = None
    source: str | None = None
    external_id: str | None = None
    created: TimeRange = ANY_TIME


async def list_events(
    conn: asyncpg.Connection, wanted: EventFilter, *, after: UUID | None, limit: int, scanned_rows: int = SCANNED_EVENTS
) -> Page[EventRow]:
    """Events, newest first. A page is bounded in bytes of data, and in the rows that are looked at for it.

    So it may be short of `limit` with more to come, and even empty.
    """
    table = tables.events
    conditions = equal(
        (table.c.tenant, wanted.tenant),
        (table.c.type, wanted.type),
        (table.c.source, wanted.source),
        (table.c.external_id, wanted.external_id),
    )
    bounds = time_conditions(table, wanted.created)
    if after is not None:
        bounds.append(table.c.id < after)
    most = max(scanned_rows, limit + 1) if conditions else limit + 1
    # First the sizes, which PostgreSQL knows without reading the data.
    size = func.octet_length(table.c.data).label("size_bytes")
    stream = select(table.c.id, table.c.tenant, table.c.type, table.c.source, table.c.external_id, size)
    stream = stream.where(*bounds).order_by(table.c.id.desc()).limit(most)
    async with conn.transaction():
        await conn.execute(PLAN_ANEW)
        records = await fetch(conn, sought(stream, conditions, most).limit(limit + 2))
    looked_at = [record for record in records if record["place"] < most]
    found = [record for record in looked_at if record["sought"]]
    shown = within([record["size_bytes"] for record in found], most_rows=limit, most_bytes=MAX_PAGE_BYTES)
    ids = [record["id"] for record in found[:shown]]
    if len(found) > shown:
        next_after = ids[-1]
    else:
        next_after = behind(looked_at[-1], records[-1]["id"]) if len(records) > len(looked_at) else None
    return Page(await _events(conn, ids), next_after)


async def _events(conn: asyncpg.Connection, ids: Sequence[UUID]) -> list[EventRow]:
    """The events with these ids, which are in falling order."""
    if not ids:
        return []
    table = tables.events
    statement = select(*columns(table, EventRow)).where(table.c.id.in_(ids), table.c.id.between(ids[-1], ids[0]))
    return [EventRow(**record) for record in await fetch(conn, statement.order_by(table.c.id.desc()))]


def within(sizes_bytes: Sequence[int], *, most_rows: int, most_bytes: int) -> int:
    """How many of the first rows fit; the first always does."""
    total_bytes = 0
    for number, size_bytes in enumerate(sizes_bytes[:most_rows]):
        total_bytes += size_bytes
        if number and total_bytes > most_bytes:
            return number
    return min(len(sizes_bytes), most_rows)


async def known_event(
    conn: asyncpg.Connection, tenant: str, source: str, external_id: str, *, window_s: float
) -> KnownEvent | None:
    """The event with this identity, if it was admitted within the dedupe window."""
    record = await conn.fetchrow(_KNOWN_EVENT, tenant, source, external_id, window_s)
    return None if record is None else KnownEvent(**record)


async def known_events(
    conn: asyncpg.Connection, identities: Sequence[tuple[str, str, str]], *, window_s: float
) -> dict[tuple[str, str, str], KnownEvent]:
    """`known_event` of many, by (tenant, source, external_id)."""
    columns_of = [list(column) for column in zip(*identities, strict=True)] or [[], [], []]
    records = await conn.fetch(_KNOWN_EVENTS, *columns_of, window_s)
    return {(one[0], one[1], one[2]): KnownEvent(one["event_id"], one["digest"]) for one in records}


async def event_times(conn: asyncpg.Connection, event_ids: Sequence[UUID]) -> dict[UUID, datetime]:
    """`event_time` of many, of those that are there."""
    records = await conn.fetch("SELECT id, time FROM events WHERE id = ANY($1::uuid[])", event_ids)
    return {one["id"]: one["time"] for one in records}


async def event_time(conn: asyncpg.Connection, event_id: UUID) -> datetime | None:
    """The time that an event says it happened at; None when it is not there, or no more."""
    found: datetime | None = await conn.fetchval("SELECT time FROM events WHERE id = $1", event_id)
    return found


async def event_admitted_at(conn: asyncpg.Connection, event_id: UUID) -> datetime | None:
    """When an event was admitted; None when it is not there, or no more."""
    found: datetime | None = await conn.fetchval("SELECT admitted_at FROM events WHERE id = $1", event_id)
    return found


async def get_event(conn: asyncpg.Connection, event_id: UUID) -> EventRow | Missing:
    records = await fetch(conn, select(*columns(tables.events, EventRow)).where(tables.events.c.id == event_id))
    return EventRow(**records[0]) if records else Missing()


async def attempts_of(conn: asyncpg.Connection, delivery_id: UUID, *, limit: int) -> list[AttemptRow]:
    """The last `limit` attempts at a delivery, over all its cycles, oldest first."""
    table = tables.attempts
    records = await fetch(
        conn,
        select(*columns(table, AttemptRow))
        .where(table.c.delivery_id == delivery_id)
        # An attempt is made after its delivery: earlier partitions need no look.
        .where(table.c.id >= least_key_after(delivery_id))
        .order_by(table.c.id.desc())
        .limit(limit),
    )
    return [AttemptRow(**record) for record in reversed(records)]


def delivery_conditions(wanted: DeliveryFilter) -> list[ColumnElement[bool]]:
    table = tables.deliveries
    conditions = equal(
        (table.c.subscription_id, wanted.subscription_id),
        (table.c.event_id, wanted.event_id),
        (table.c.tenant, wanted.tenant),
        (table.c.event_type, wanted.event_type),
        (table.c.replay_id, wanted.replay_id),
    )
    if wanted.event_id is not None:
        # A delivery shares the milliseconds of its event, so the primary key finds them.
        conditions.append(table.c.id.between(*keys_alike(wanted.event_id)))
    if wanted.statuses:
        conditions.append(table.c.status.in_(wanted.statuses))
    if wanted.died != ANY_TIME:
        letters = tables.dead_letters
        # The open one is of its last death: a replay settles those before.
        its_letter = [letters.c.delivery_id == table.c.id, letters.c.state == "open"]
        conditions.append(exists().where(*its_letter, *time_conditions(letters, wanted.died)))
    return conditions + time_conditions(table, wanted.created)


def time_conditions(table: Table, created: TimeRange) -> list[ColumnElement[bool]]:
    """A range of time as a range of keys."""
    conditions: list[ColumnElement[bool]] = []
    if created.after is not None:
        conditions.append(table.c.id >= first_key_at(max(created.after, _EPOCH)))
    if created.before is not None:
        conditions.append(table.c.id < first_key_at(max(created.before, _EPOCH)))
    return conditions
