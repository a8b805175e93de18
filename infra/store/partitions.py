"""Partitions by day of `events`, `deliveries` and `attempts`, over their time-ordered keys (UTC days)."""

from datetime import UTC, date, datetime, time, timedelta

import asyncpg

from infra.store.tables import PARTITIONED
from schemas.ids import first_key_at


async def today(conn: asyncpg.Connection) -> date:
    """The day it is, in UTC, by the database's clock."""
    day = await conn.fetchval("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
    assert isinstance(day, date)
    return day


def partition_name(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"


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
