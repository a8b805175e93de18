"""Partitions by day of `events`, `deliveries` and `attempts`, over their time-ordered keys (UTC days).

Every step is a short transaction of its own under the MAINTENANCE lock, so that any number of processes may call
at once, a crash between two steps loses nothing, and the next call goes on from there.

A key outside all partitions cannot be stored: the insert fails as StoreUnavailable ("no partition of relation"). It
does not come to that while somebody calls `keep_partitions` once in `ahead_days` and clocks are less than a day apart,
because `read_event` takes no time of acceptance that is older than a day or ahead of now. There is no default
partition to catch the rest: making a day's partition would then lock and scan it.
"""

import asyncio
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from infra.store import locks, operational
from infra.store.tables import PARTITIONED
from schemas.deliveries import UNFINISHED, DeadLetterKind
from schemas.ids import first_key_at

PAST_RETENTION: Final = "past retention"

_BATCH_ROWS: Final = 1000
_LOCK_TIMEOUT_MS: Final = 300  # traffic queues up behind a waiting exclusive lock for so long, at most
_LOCK_ATTEMPTS: Final = 20
_LOCK_PAUSE_S: Final = 0.5
_DROP_TIMEOUT_S: Final = 600  # removing a day's files

# An event goes after its deliveries, so that whoever has a delivery finds its event.
_DROP_ORDER: Final = ("deliveries", "events", "attempts")


@dataclass(frozen=True, slots=True)
class Kept:
    """What a call of `keep_partitions` did."""

    made: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    dead_lettered: int = 0  # deliveries


async def today(conn: asyncpg.Connection) -> date:
    """The day it is, in UTC, by the database's clock."""
    day = await conn.fetchval("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
    assert isinstance(day, date)
    return day


def partition_name(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


async def keep_partitions(conn: asyncpg.Connection, *, today: date, ahead_days: int, retention_days: int) -> Kept:
    """Make the partitions of yesterday to `today + ahead_days`, drop those of days before `today - retention_days`.

    What is unfinished past retention leaves a dead letter each. Nothing is done while another process is at it.
    Give it a connection that is not in a transaction: inside one, every lock is kept to its end.
    """
    async with conn.transaction():
        if not await locks.try_take(conn, locks.Lock.MAINTENANCE):
            return Kept()
        made = await make(conn, first=today - timedelta(days=1), last=today + timedelta(days=ahead_days))

    oldest_kept = today - timedelta(days=retention_days)
    dropped = []
    dead_lettered = 0
    for table in _DROP_ORDER:
        for name in await _attached(conn, table):
            if _day(name) < oldest_kept:
                await _detach(conn, table, name)
        for name in await _detached(conn, table):
            if table == "deliveries":
                dead_lettered += await _bury_unfinished(conn, name)
            await _drop(conn, name)
            dropped.append(name)
    return Kept(tuple(made), tuple(dropped), dead_lettered)


async def make(conn: asyncpg.Connection, *, first: date, last: date) -> list[str]:
    """Make the missing partitions from `first` to `last`. In a transaction, under the MAINTENANCE lock.

    A table like its parent is made first and then attached. `CREATE TABLE … PARTITION OF` would lock the parent
    against all traffic; attaching lets reads and writes go on.
    """
    made = []
    for offset in range((last - first).days + 1):
        day = first + timedelta(days=offset)
        low, high = (first_key_at(datetime.combine(at, time(), UTC)) for at in (day, day + timedelta(days=1)))
        for table in PARTITIONED:
            name = partition_name(table, day)
            if await conn.fetchval("SELECT to_regclass($1)", name) is not None:
                continue
            await conn.execute(f"CREATE TABLE {name} (LIKE {table} INCLUDING ALL)")
            await conn.execute(f"ALTER TABLE {table} ATTACH PARTITION {name} FOR VALUES FROM ('{low}') TO ('{high}')")
            made.append(name)
    return made


async def drop_old_keys(conn: asyncpg.Connection, *, window_s: float, limit: int) -> int:
    """Forget at most `limit` event keys that are older than the dedupe window, the oldest first; how many they were."""
    status = await conn.execute(
        """
        DELETE FROM event_keys WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM event_keys WHERE created_at < statement_timestamp() - make_interval(secs => $1)
            ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))
        """,
        window_s,
        limit,
    )
    return int(status.removeprefix("DELETE "))


async def _attached(conn: asyncpg.Connection, table: str) -> list[str]:
    """The partitions of a table, oldest first."""
    rows = await conn.fetch(
        "SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid"
        " WHERE inhparent = $1::text::regclass ORDER BY 1",
        table,
    )
    return [row["relname"] for row in rows]


async def _detached(conn: asyncpg.Connection, table: str) -> list[str]:
    """Tables that were a partition: a call that was cut off left them, or this one just did."""
    rows = await conn.fetch(
        """
        SELECT relname FROM pg_class
         WHERE relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = $1::text::regclass)
           AND relkind = 'r' AND NOT relispartition AND relname ~ ('^' || $1::text || '_[0-9]{8}$')
         ORDER BY 1
        """,
        table,
    )
    return [row["relname"] for row in rows]


def _day(name: str) -> date:
    digits = re.search(r"\d{8}$", name)
    # A partition that somebody else attached, under another name, is not ours to drop.
    return datetime.strptime(digits[0], "%Y%m%d").replace(tzinfo=UTC).date() if digits else date.max


async def _detach(conn: asyncpg.Connection, table: str, name: str) -> None:
    """Take a partition out of its table: from here on nobody can begin, change or replay what is in it.

    This needs the table to itself for a moment. It is waited for only briefly, again and again, because all traffic
    queues up behind. Raises asyncpg.LockNotAvailableError when it is not to be had.
    """
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            async with conn.transaction():
                await locks.take(conn, locks.Lock.MAINTENANCE)
                await conn.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
                if name in await _attached(conn, table):
                    await conn.execute(f"ALTER TABLE {table} DETACH PARTITION {name}")
        except asyncpg.LockNotAvailableError:
            if attempt == _LOCK_ATTEMPTS - 1:
                raise
            await asyncio.sleep(_LOCK_PAUSE_S)
        else:
            return


async def _bury_unfinished(conn: asyncpg.Connection, name: str) -> int:
    """Give each unfinished delivery of a detached partition its one dead letter, a batch at a time; how many."""
    buried = 0
    last: UUID | None = UUID(int=0)
    while last is not None:
        async with conn.transaction():
            await locks.take(conn, locks.Lock.MAINTENANCE)
            if await conn.fetchval("SELECT to_regclass($1)", name) is None:
                return buried  # another process finished the work
            rows = await conn.fetch(
                f"""
                UPDATE {name} SET status = 'dead', reason = $1 WHERE id IN (
                    SELECT id FROM {name} WHERE status = ANY ($2) AND id > $3 ORDER BY id LIMIT {_BATCH_ROWS})
                RETURNING id, cycle, tenant, subscription_id, event_id
                """,  # noqa: S608 - our own table's name
                PAST_RETENTION,
                sorted(UNFINISHED),
                last,
            )
            letters = [uuid7() for _ in rows]
            await conn.executemany(
                """
                INSERT INTO dead_letters (id, kind, reason, delivery_id, cycle, tenant, subscription_id, event_id)
                VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (delivery_id, cycle) DO NOTHING
                """,
                [
                    (letter, DeadLetterKind.DELIVERY.value, PAST_RETENTION, *row.values())
                    for letter, row in zip(letters, rows, strict=True)
                ],
            )
            await operational.tell_deaths(conn, letters, least=UUID(int=0), among=name)
        buried += len(rows)
        last = max((row["id"] for row in rows), default=None)
    return buried


async def _drop(conn: asyncpg.Connection, name: str) -> None:
    async with conn.transaction():
        await locks.take(conn, locks.Lock.MAINTENANCE)
        await conn.execute(f"SET LOCAL statement_timeout = '{_DROP_TIMEOUT_S}s'")
        await conn.execute(f"DROP TABLE IF EXISTS {name}", timeout=_DROP_TIMEOUT_S)
