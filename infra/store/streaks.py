"""Streaks in the rows of their subscriptions: counted, ended, told.

A streak belongs to a URL and to a state: whatever an operator changes of these begins anew (`subscriptions._SAVE`), and
what an attempt at another URL says is passed over here. Its time runs by the database's clock, from when its first
failure was counted.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg

from infra.store.statements import LOCK_ENDPOINTS

Target = tuple[UUID, str]  # a subscription, and the URL that it had

# By a partial index, which is nearly empty: for a batch of endpoints that are well, this costs a round trip.
_FAILING_AMONG = "SELECT id FROM subscriptions WHERE id = ANY($1::uuid[]) AND failing_since IS NOT NULL"

_LOCK_FREE = "SELECT id FROM subscriptions WHERE id = ANY($1::uuid[]) FOR NO KEY UPDATE SKIP LOCKED"

# $1…$3 arrays: subscription, URL, failures.
_COUNT_FAILURES = """
UPDATE subscriptions AS s SET
    failing_since = coalesce(s.failing_since, clock_timestamp()), failures = s.failures + new.failures
FROM unnest($1::uuid[], $2::text[], $3::bigint[]) AS new (id, url, failures)
WHERE s.id = new.id AND s.url = new.url AND s.state <> 'disabled' AND s.deleted_at IS NULL
RETURNING s.id, s.url, s.failures, s.failing_since, s.failing_told AS told,
          extract(epoch FROM clock_timestamp() - s.failing_since)::float8 AS age_s
"""

# A statement of its own after the rows were locked: what it calls the row before is what the lock has shown. $1, $2
# arrays: subscription, URL.
_END_STREAKS = """
UPDATE subscriptions AS s SET failing_since = NULL, failures = 0, failing_told = false
FROM unnest($1::uuid[], $2::text[]) AS here (id, url) JOIN subscriptions AS before USING (id, url)
WHERE s.id = before.id AND before.failing_since IS NOT NULL
RETURNING before.id, before.url, before.failures, before.failing_since, before.failing_told AS told,
          extract(epoch FROM clock_timestamp() - before.failing_since)::float8 AS age_s
"""

_DELIVERED_SINCE = """
SELECT EXISTS (SELECT FROM deliveries WHERE subscription_id = $1 AND status = 'delivered' AND updated_at > $2)
"""

_MARK_TOLD = "UPDATE subscriptions SET failing_told = true WHERE id = $1"


@dataclass(frozen=True, slots=True)
class StreakRow:
    """A streak as it is stored, or as it was when it ended."""

    id: UUID
    url: str
    failures: int
    failing_since: datetime
    told: bool
    age_s: float


async def failing_among(conn: asyncpg.Connection, subscriptions: Collection[UUID]) -> set[UUID]:
    """Those that have a streak. Not locked: one that another transaction begins just now is not seen."""
    return {record["id"] for record in await conn.fetch(_FAILING_AMONG, sorted(subscriptions))}


async def lock(conn: asyncpg.Connection, subscriptions: Collection[UUID], *, wait: bool) -> set[UUID]:
    """Lock the rows of these for `end`; without `wait`, those of them that nobody has. Which were locked."""
    statement = LOCK_ENDPOINTS if wait else _LOCK_FREE
    return {record["id"] for record in await conn.fetch(statement, sorted(subscriptions))}


async def count(conn: asyncpg.Connection, failures: Mapping[Target, int]) -> list[StreakRow]:
    """Add failures to the streaks; what these are now. Locks the subscriptions' rows, in order."""
    await conn.execute(LOCK_ENDPOINTS, sorted({subscription for subscription, _ in failures}))
    ids, urls = [subscription for subscription, _ in failures], [url for _, url in failures]
    return [StreakRow(**record) for record in await conn.fetch(_COUNT_FAILURES, ids, urls, list(failures.values()))]


async def end(conn: asyncpg.Connection, delivered: Collection[Target]) -> list[StreakRow]:
    """End the streaks of these, whose rows the caller has locked; what they were."""
    ids, urls = [subscription for subscription, _ in delivered], [url for _, url in delivered]
    return [StreakRow(**record) for record in await conn.fetch(_END_STREAKS, ids, urls)]


async def delivered_since(conn: asyncpg.Connection, subscription: UUID, moment: datetime) -> bool:
    """Whether anything was. Reads all the deliveries of the subscription: not for the hot path."""
    return bool(await conn.fetchval(_DELIVERED_SINCE, subscription, moment))


async def mark_told(conn: asyncpg.Connection, subscription: UUID) -> None:
    await conn.execute(_MARK_TOLD, subscription)
