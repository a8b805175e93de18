"""Expunging an event: what it said is overwritten for good, wherever it stands; that there was one stays.

Of the event go `data` and `headers`; of its attempts what the endpoints answered, which may be what they were sent; of
the messages that conflicted with it all that they said. Its digest goes too, from which a small payload can be
guessed: its (tenant, source, id) stays known for the dedupe window, and whatever is published under it is a repeat.
What stays says that, when and where to something was sent: ids, type, source, subject, times, statuses, reasons.

All of it is one transaction, so a payload is there or it is not. What is overwritten stands in the database's files
until VACUUM has been there, and in its write-ahead log and backups for as long as those are kept.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg

from infra.store.outcomes import Missing
from schemas.deliveries import UNFINISHED
from schemas.ids import key_ms

EXPUNGED: Final = "its event was expunged"

_AT_A_TIME: Final = 500  # deliveries in one statement, so that none meets its timeout

# Locked, so that nobody expunges it twice at once, and nobody makes a delivery of it meanwhile (FOR SHARE).
_LOCK_EVENT: Final = "SELECT tenant, source, external_id, expunged_at FROM events WHERE id = $1 FOR NO KEY UPDATE"

_FORGET_DIGEST: Final = """
UPDATE event_keys SET digest = '' WHERE tenant = $1 AND source = $2 AND external_id = $3 AND event_id = $4
"""

# All of them, also those that have ended: who records a late attempt at one has it locked.
_LOCK_DELIVERIES: Final = """
SELECT id, status, claimed_by IS NOT NULL AS claimed FROM deliveries
WHERE event_id = $1 AND id >= $2 AND id < $3
ORDER BY id
FOR NO KEY UPDATE
"""

_CANCEL: Final = """
UPDATE deliveries
SET status = 'canceled', reason = $4, next_attempt_at = NULL, hint_due_at = NULL, updated_at = clock_timestamp()
WHERE id = ANY($1) AND id BETWEEN $2 AND $3
"""

# In all partitions: whose clock was behind has made an attempt before its delivery.
_CLEAR_ANSWERS: Final = """
UPDATE attempts SET response_body = NULL, response_headers = NULL
WHERE delivery_id = ANY($1) AND (response_body IS NOT NULL OR response_headers IS NOT NULL)
"""

# Its identity is of a digest too.
_CLEAR_CONFLICTS: Final = """
UPDATE dead_letters SET body = NULL, headers = NULL, identity = NULL WHERE event_id = $1 AND kind <> 'delivery'
"""

_EXPUNGE: Final = """
UPDATE events SET data = '', headers = NULL, expunged_at = coalesce(expunged_at, clock_timestamp()) WHERE id = $1
RETURNING expunged_at
"""

_EXPUNGED_OF: Final = """
SELECT id FROM events WHERE id = ANY($1) AND id BETWEEN $2 AND $3 AND expunged_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Expunction:
    """What was done: so many deliveries were `canceled`. Of `in_progress` an attempt may be under way, or in hand: a
    dispatcher that has read the event may still send it."""

    event_id: UUID
    tenant: str
    expunged_at: datetime
    canceled: int
    in_progress: int


async def expunge(conn: asyncpg.Connection, event_id: UUID) -> Expunction | Missing:
    """Expunge an event, and cancel its deliveries that have not ended. Again it finds nothing more to do."""
    event = await conn.fetchrow(_LOCK_EVENT, event_id)
    if event is None:
        return Missing()
    await conn.execute(_FORGET_DIGEST, event["tenant"], event["source"], event["external_id"], event_id)
    ms = key_ms(event_id)  # which its deliveries share
    first, beyond = UUID(int=ms << 80), UUID(int=(ms + 1) << 80)
    deliveries = await conn.fetch(_LOCK_DELIVERIES, event_id, first, beyond)
    unfinished = [one["id"] for one in deliveries if one["status"] in UNFINISHED]
    for ids in _parts(unfinished):
        await conn.execute(_CANCEL, ids, ids[0], ids[-1], EXPUNGED)
    for ids in _parts([one["id"] for one in deliveries]):
        await conn.execute(_CLEAR_ANSWERS, ids)
    await conn.execute(_CLEAR_CONFLICTS, event_id)
    expunged_at = await conn.fetchval(_EXPUNGE, event_id)
    in_progress = sum(one["claimed"] for one in deliveries)
    return Expunction(event_id, event["tenant"], expunged_at, len(unfinished), in_progress)


async def expunged_of(conn: asyncpg.Connection, event_ids: Collection[UUID]) -> frozenset[UUID]:
    """Which of these events were expunged."""
    if not event_ids:
        return frozenset()
    ids = sorted(event_ids)
    return frozenset(record["id"] for record in await conn.fetch(_EXPUNGED_OF, ids, ids[0], ids[-1]))


def _parts(ids: Sequence[UUID]) -> list[Sequence[UUID]]:
    return [ids[start : start + _AT_A_TIME] for start in range(0, len(ids), _AT_A_TIME)]
