"""How many requests a key has left: windows of a minute by the database's clock, counted for all processes in one row.

A process takes requests from a window in advance, many with one statement, and those that it has not made when the
window ends are gone. So a key never makes more than its limit in a window, however many processes there are.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

WINDOW_S: Final = 60

# A row whose window is the next one was written by a transaction whose clock was read a little later than ours. One
# further off is of a clock that was set back, and begins anew.
_TAKE = """
INSERT INTO api_key_windows AS had (key_id, number, taken, granted)
SELECT $1, floor(extract(epoch FROM clock_timestamp()) / $4::integer)::bigint, first, first
FROM (SELECT least($2::integer, $3::integer) AS first) AS first
ON CONFLICT (key_id) DO UPDATE SET (number, taken, granted) = (
    SELECT new.number, new.before + new.granted, new.granted
    FROM (
        SELECT same.number, same.before, greatest(0, least($2::integer, $3::integer - same.before)) AS granted
        FROM (
            SELECT CASE WHEN had.number BETWEEN excluded.number AND excluded.number + 1
                        THEN had.number ELSE excluded.number END AS number,
                   CASE WHEN had.number BETWEEN excluded.number AND excluded.number + 1
                        THEN had.taken ELSE 0 END AS before
        ) AS same
    ) AS new
)
RETURNING granted, taken, ((number + 1) * $4::integer - extract(epoch FROM clock_timestamp()))::float8 AS left_s
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """So many requests were `granted`, of a window that has `rest` after them and ends in `left_s` seconds."""

    granted: int
    rest: int
    left_s: float


async def take(conn: asyncpg.Connection, key_id: UUID, wanted: int, *, limit: int) -> Taken:
    """Take up to `wanted` requests of the current window, in which the key may make `limit`."""
    record = await conn.fetchrow(_TAKE, key_id, wanted, limit, WINDOW_S)
    assert record is not None
    return Taken(record["granted"], max(0, limit - record["taken"]), record["left_s"])
