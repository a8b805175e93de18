"""Replays in bulk: a filter, frozen when it is asked for, that dispatchers work through a step at a time.

Each at its own rate: how far a step goes is decided under the lock on the replay's row, by the database's clock, from
what stands in the row. So the rate holds over the whole fleet, and over its restarts.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
from sqlalchemy import and_, func, or_, select, true
from sqlalchemy.sql.util import ClauseAdapter

from infra.store import deliveries, tables
from infra.store.delivery_pages import GIVEN_UP
from infra.store.history import DeliveryFilter, TimeRange, delivery_conditions, time_conditions
from infra.store.outcomes import Missing, Refused
from infra.store.query import PLAN_ANEW, Page, column_list, equal, fetch, fetch_page, fetch_value
from schemas.ids import SUBSCRIPTION, parse_id, public_id

SCANNED_ROWS: Final = 10_000  # that a step looks at, however few of them are wanted
MAX_RUNNING: Final = 100  # of a tenant: dispatchers take a step of each in turn, so many would keep others' waiting


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

_COUNT_RUNNING = "SELECT count(*) FROM replays WHERE state = 'running' AND tenant IS NOT DISTINCT FROM $1"

_PROGRESS = "SELECT status, count(*) FROM deliveries WHERE replay_id = $1 GROUP BY status"

_CANCEL = f"""
UPDATE replays SET state = 'canceled', ended_at = clock_timestamp() WHERE id = $1 AND state = 'running'
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table


async def check_number(conn: asyncpg.Connection, tenant: str | None) -> Refused | None:
    """Whether one more replay of a tenant, or of none, may run. Those made in the same moment do not see another."""
    if await conn.fetchval(_COUNT_RUNNING, tenant) < MAX_RUNNING:
        return None
    return Refused(f"{MAX_RUNNING} replays are running already; cancel one, or wait for one to be completed")


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


async def advance(
    conn: asyncpg.Connection, running: Running, *, count: int, since_s: float, scanned_rows: int = SCANNED_ROWS
) -> bool:
    """Begin the next `count` deliveries of a replay that was taken again; its next step is reckoned from `since_s`.

    Or fewer, where it has looked at as many rows as a step may: then the answer is true, and where none was found, the
    step has used nothing of its rate. The cursor only moves up, so a delivery that is replayed and dies again is not
    taken twice.
    """
    found = await _next(conn, decode_filter(running.filter), running.cursor, count, scanned_rows)
    if found.until is not None:
        replayed = await deliveries.replay(conn, found.ids, replay_id=running.id)
        skipped = len(found.ids) - len(replayed)
        reckoned_s = since_s if found.ids else running.since_s
        await conn.execute(_ADVANCE, running.id, found.until, len(replayed), skipped, reckoned_s)
    if found.is_all:
        await conn.execute(_COMPLETE, running.id)
    return not found.is_all and len(found.ids) < count


class _Found(NamedTuple):
    """Deliveries that are wanted, in order of id, of the rows up to `until`. `is_all`: no more come."""

    ids: list[UUID]
    until: UUID | None
    is_all: bool


async def _next(
    conn: asyncpg.Connection, wanted: DeliveryFilter, cursor: UUID | None, count: int, scanned_rows: int
) -> _Found:
    """The next that are wanted, of the next `scanned_rows` rows that an index has in this order."""
    await conn.execute(PLAN_ANEW)
    table = tables.deliveries
    bounds = [*time_conditions(table, wanted.created), *equal((table.c.subscription_id, wanted.subscription_id))]
    if cursor is not None:
        bounds.append(table.c.id > cursor)
    if len(wanted.statuses) == 1 and GIVEN_UP.issuperset(wanted.statuses):
        bounds.append(table.c.status == wanted.statuses[0])
    scanned = select(table).where(*bounds).order_by(table.c.id).limit(scanned_rows).subquery("scanned")
    kept = and_(true(), *map(ClauseAdapter(scanned).traverse, delivery_conditions(wanted)))
    place = func.row_number().over(order_by=scanned.c.id)
    judged = select(scanned.c.id, kept.label("wanted"), (place == scanned_rows).label("last")).subquery("judged")
    told = select(judged).where(or_(judged.c.wanted, judged.c.last)).order_by(judged.c.id).limit(count + 1)
    records = await fetch(conn, told)
    ids = [record["id"] for record in records if record["wanted"]]
    if len(ids) > count:
        return _Found(ids[:count], ids[count - 1], is_all=False)
    if records and records[-1]["last"]:
        return _Found(ids, records[-1]["id"], is_all=False)
    return _Found(ids, ids[-1] if ids else None, is_all=True)


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
