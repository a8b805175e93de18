"""What became of a subscription's deliveries in a range of time, counted.

Deliveries are found by their subscription and key, attempts by their delivery: there is no counter that the hot path
would have to keep. So what is counted is bounded in deliveries, and whoever asks bounds the time that it may take.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from schemas.ids import first_key_at, key_time

MAX_COUNTED: Final = 50_000  # deliveries, the newest

_FIRST_NOT_COUNTED = """
SELECT id FROM deliveries WHERE subscription_id = $1 AND id >= $2 AND id < $3 ORDER BY id DESC OFFSET $4 LIMIT 1
"""

_DELIVERIES = """
SELECT status, count(*) FROM deliveries WHERE subscription_id = $1 AND id >= $2 AND id < $3 GROUP BY status
"""

# An attempt is made after its delivery was admitted, so the same bounds pick the partitions of both.
_ATTEMPTS = """
WITH counted AS MATERIALIZED (
    SELECT id FROM deliveries WHERE subscription_id = $1 AND id >= $2 AND id < $3
)
SELECT GROUPING(hour) = 0 AS of_hour, GROUPING(status_code) = 0 AS of_answer, hour, status_code, failure,
       count(*) AS attempts, count(*) FILTER (WHERE outcome = 'delivered') AS delivered,
       percentile_disc(ARRAY[0.5, 0.95, 0.99]) WITHIN GROUP (ORDER BY duration_ms) AS latency_ms
FROM (
    SELECT date_trunc('hour', a.started_at, 'UTC') AS hour, a.status_code, a.failure, a.outcome, a.duration_ms
    FROM counted AS d JOIN attempts AS a ON a.delivery_id = d.id AND a.id >= $2 AND a.id < $3
) AS made
GROUP BY GROUPING SETS ((), (hour), (status_code, failure))
ORDER BY hour, attempts DESC, status_code, failure
"""


@dataclass(frozen=True, slots=True)
class Attempts:
    """Attempts that have something in common; `latency_ms` at the percentiles 50, 95 and 99, empty without attempts."""

    attempts: int
    delivered: int
    latency_ms: Sequence[int]


@dataclass(frozen=True, slots=True)
class Stats:
    """`since` is later than what was asked for where there is more than is counted; then not `complete`."""

    since: datetime
    complete: bool
    deliveries: dict[str, int]  # by status
    attempts: Attempts
    by_answer: list[tuple[int | None, str | None, Attempts]]  # status, or why there was none
    by_hour: list[tuple[datetime, Attempts]]


async def count(conn: asyncpg.Connection, subscription_id: UUID, *, since: datetime, until: datetime) -> Stats:
    """The deliveries of a subscription that were accepted in the range, and the attempts made at them in it."""
    least, end = first_key_at(since), first_key_at(until)
    more: UUID | None = await conn.fetchval(_FIRST_NOT_COUNTED, subscription_id, least, end, MAX_COUNTED)
    if more is not None:
        least = UUID(int=more.int + 1)
    statuses = await conn.fetch(_DELIVERIES, subscription_id, least, end)
    groups = await conn.fetch(_ATTEMPTS, subscription_id, least, end)
    return Stats(
        since=since if more is None else key_time(least),
        complete=more is None,
        deliveries={row["status"]: row["count"] for row in statuses},
        attempts=next(_attempts(row) for row in groups if not row["of_hour"] and not row["of_answer"]),
        by_answer=[(row["status_code"], row["failure"], _attempts(row)) for row in groups if row["of_answer"]],
        by_hour=[(row["hour"], _attempts(row)) for row in groups if row["of_hour"]],
    )


def _attempts(row: asyncpg.Record) -> Attempts:
    return Attempts(row["attempts"], row["delivered"], row["latency_ms"] or ())
