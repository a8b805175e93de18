"""What operators do to deliveries: replay, retry at once, cancel; and ending those of a subscription that is going.

Each function runs inside the caller's transaction and takes its locks in the one order that everybody keeps:
advisory lock, subscription rows by id, delivery rows by id. None of them touches a claim or a fence: whoever is
attempting the delivery just now finds the row changed when it settles.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from infra.store import operational, statements, tables
from infra.store.expunging import EXPUNGED, expunged_of
from infra.store.outcomes import Expunged, Missing, Refused
from infra.store.query import column_list
from schemas.deliveries import ENDED, UNFINISHED, Status

CANCELED_BY_OPERATOR = "canceled by operator"

# Rows that one call of `end_unfinished` ends, at most: the exclusive lock is held meanwhile, and no event is admitted.
# The reconciler ends what is left; no dispatcher attempts a delivery of a subscription that is disabled or deleted.
END_AT_ONCE = 5_000

_ENDED = sorted(ENDED)
_UNFINISHED = sorted(UNFINISHED)


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """A delivery as the history shows it."""

    id: UUID
    event_id: UUID
    subscription_id: UUID
    tenant: str
    event_type: str
    status: str
    reason: str | None
    attempts: int
    cycle: int
    next_attempt_at: datetime | None
    claimed_by: UUID | None
    claimed_at: datetime | None
    updated_at: datetime
    replay_id: UUID | None
    cycle_began_at: datetime | None


_COLUMNS = column_list(tables.deliveries, DeliveryRow)

# Locked in any case, also when the mode is held already: the feeder's closing check ("backlog empty, so open it")
# locks the same rows, and one of the two has to see the other.
_LOCK_ENABLED_SUBSCRIPTIONS = """
SELECT id FROM subscriptions
WHERE id IN (SELECT subscription_id FROM deliveries WHERE id = ANY($1) AND id BETWEEN $2 AND $3)
  AND state = 'enabled' AND deleted_at IS NULL
ORDER BY id
FOR NO KEY UPDATE OF subscriptions
"""

_LOCK_REPLAYABLE = """
SELECT id, event_id FROM deliveries
WHERE id = ANY($1) AND id BETWEEN $2 AND $3 AND status = ANY($4) AND subscription_id = ANY($5)
ORDER BY id
FOR NO KEY UPDATE
"""

_REPLAY = """
UPDATE deliveries
SET cycle = cycle + 1, attempts = 0, status = 'held', reason = NULL, next_attempt_at = NULL, hint_due_at = NULL,
    replay_id = $4, cycle_began_at = clock_timestamp(), updated_at = clock_timestamp()
WHERE id = ANY($1) AND id BETWEEN $2 AND $3
RETURNING subscription_id
"""

_HOLD_SUBSCRIPTIONS = "UPDATE subscriptions SET mode = 'held' WHERE id = ANY($1) AND mode <> 'held'"

_MARK_DEAD_LETTERS_REPLAYED = """
UPDATE dead_letters SET state = 'replayed', settled_at = clock_timestamp()
WHERE delivery_id = ANY($1) AND kind = 'delivery' AND state = 'open'
"""

_LOCK_SUBSCRIPTION_OF = """
SELECT state, deleted_at FROM subscriptions
WHERE id = (SELECT subscription_id FROM deliveries WHERE id = $1)
FOR NO KEY UPDATE OF subscriptions
"""

_LOCK_LIVE_SUBSCRIPTIONS = """
SELECT id FROM subscriptions
WHERE id IN (SELECT subscription_id FROM deliveries WHERE id = ANY($1) AND id BETWEEN $2 AND $3)
  AND state <> 'disabled' AND deleted_at IS NULL
ORDER BY id
FOR NO KEY UPDATE OF subscriptions
"""

_LOCK_RETRYABLE = """
SELECT id FROM deliveries
WHERE id = ANY($1) AND id BETWEEN $2 AND $3 AND status = 'retrying' AND claimed_by IS NULL AND subscription_id = ANY($4)
ORDER BY id
FOR NO KEY UPDATE
"""

_HOLD = """
UPDATE deliveries
SET status = 'held', reason = NULL, next_attempt_at = NULL, hint_due_at = NULL, updated_at = clock_timestamp()
WHERE id = ANY($1) AND id BETWEEN $2 AND $3
RETURNING subscription_id
"""

_LOCK_OF_STATUS = """
SELECT id FROM deliveries WHERE id = ANY($1) AND id BETWEEN $2 AND $3 AND status = ANY($4)
ORDER BY id
FOR NO KEY UPDATE
"""

_RETRY = f"""
UPDATE deliveries
SET status = 'held', reason = NULL, next_attempt_at = NULL, hint_due_at = NULL, updated_at = clock_timestamp()
WHERE id = $1 AND status = ANY($2) AND claimed_by IS NULL
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_CANCEL = f"""
UPDATE deliveries
SET status = 'canceled', reason = $3, next_attempt_at = NULL, hint_due_at = NULL, updated_at = clock_timestamp()
WHERE id = $1 AND status = ANY($2)
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

# One condition for each partial index, rather than `status = ANY(…)`: the history of a subscription may be millions of
# ended rows, and no index keeps the unfinished ones apart. A pending row always has a claim.
_LOCK_UNFINISHED = """
WITH found AS MATERIALIZED (
    SELECT id FROM deliveries
    WHERE subscription_id = $1
      AND (status = 'held' OR status = 'retrying' OR (status = 'pending' AND claimed_by IS NOT NULL))
    LIMIT $2
)
SELECT id FROM deliveries
WHERE id IN (SELECT id FROM found)
  AND id >= (SELECT id FROM found ORDER BY id LIMIT 1)
  AND status IN ('held', 'retrying', 'pending')
ORDER BY id
FOR NO KEY UPDATE
"""

_END = """
UPDATE deliveries
SET status = $4, reason = $5, next_attempt_at = NULL, hint_due_at = NULL, updated_at = clock_timestamp()
WHERE id = ANY($1) AND id BETWEEN $2 AND $3
"""


async def get(conn: asyncpg.Connection, delivery_id: UUID) -> DeliveryRow | Missing:
    record = await conn.fetchrow(f"SELECT {_COLUMNS} FROM deliveries WHERE id = $1", delivery_id)  # noqa: S608
    return Missing() if record is None else DeliveryRow(**record)


async def replay(
    conn: asyncpg.Connection, delivery_ids: Collection[UUID], *, replay_id: UUID | None = None
) -> list[UUID]:
    """Begin ended deliveries of enabled subscriptions again, and return those that were.

    They join their endpoint's backlog with a new cycle, of the replay in bulk `replay_id` if one does it; their dead
    letters become `replayed`. What has not ended, is gone, or belongs to a subscription that is paused, disabled or
    deleted is passed over, and so is what is of an event that was expunged.
    """
    if not delivery_ids:
        return []
    ids = sorted(set(delivery_ids))
    enabled = [record["id"] for record in await conn.fetch(_LOCK_ENABLED_SUBSCRIPTIONS, ids, ids[0], ids[-1])]
    if not enabled:
        return []
    locked = await conn.fetch(_LOCK_REPLAYABLE, ids, ids[0], ids[-1], _ENDED, enabled)
    # Asked after the locks: who expunges has them too.
    expunged = await expunged_of(conn, {record["event_id"] for record in locked})
    replayed = [record["id"] for record in locked if record["event_id"] not in expunged]
    if not replayed:
        return []
    touched = await conn.fetch(_REPLAY, replayed, replayed[0], replayed[-1], replay_id)
    await conn.execute(_HOLD_SUBSCRIPTIONS, sorted({record["subscription_id"] for record in touched}))
    await conn.execute(_MARK_DEAD_LETTERS_REPLAYED, replayed)
    return replayed


async def why_not_replayed(conn: asyncpg.Connection, delivery_id: UUID) -> Missing | Refused:
    """The reason, for a person, that `replay` passed a delivery over."""
    row = await get(conn, delivery_id)
    if isinstance(row, Missing):
        return row
    if await expunged_of(conn, [row.event_id]):
        return Expunged(EXPUNGED)
    if row.status not in ENDED:
        return Refused(f"the delivery is {row.status}; only one that has ended can be replayed")
    subscription = await conn.fetchrow("SELECT state, deleted_at FROM subscriptions WHERE id = $1", row.subscription_id)
    if subscription is None or subscription["deleted_at"] is not None:
        return Refused("its subscription is deleted")
    return Refused(f"its subscription is {subscription['state']}; only an enabled one is replayed to")


async def retry_now(conn: asyncpg.Connection, delivery_id: UUID) -> DeliveryRow | Missing | Refused:
    """Put an unfinished delivery that nobody is attempting into its endpoint's backlog, in the same cycle."""
    subscription = await conn.fetchrow(_LOCK_SUBSCRIPTION_OF, delivery_id)
    if subscription is not None and (subscription["deleted_at"] is not None or subscription["state"] == "disabled"):
        return Refused("its subscription is deleted or disabled")
    record = await conn.fetchrow(_RETRY, delivery_id, _UNFINISHED)
    if record is None:
        return await _why_not_retried(conn, delivery_id)
    row = DeliveryRow(**record)
    await conn.execute(_HOLD_SUBSCRIPTIONS, [row.subscription_id])
    return row


async def _why_not_retried(conn: asyncpg.Connection, delivery_id: UUID) -> Missing | Refused:
    row = await get(conn, delivery_id)
    if isinstance(row, Missing):
        return row
    if await expunged_of(conn, [row.event_id]):
        return Expunged(EXPUNGED)
    if row.status in ENDED:
        return Refused(f"the delivery is {row.status}; only an unfinished one can be retried, an ended one is replayed")
    return Refused("the delivery is being attempted just now")


async def retry_all(conn: asyncpg.Connection, delivery_ids: Collection[UUID]) -> list[UUID]:
    """Put those that wait for their next attempt into their endpoints' backlogs, as `retry_now`; return those.

    What is held waits there already. What is being attempted, has ended, is gone, or belongs to a subscription that is
    disabled or deleted is passed over.
    """
    if not delivery_ids:
        return []
    ids = sorted(set(delivery_ids))
    live = [record["id"] for record in await conn.fetch(_LOCK_LIVE_SUBSCRIPTIONS, ids, ids[0], ids[-1])]
    retried = [record["id"] for record in await conn.fetch(_LOCK_RETRYABLE, ids, ids[0], ids[-1], live)]
    if retried:
        touched = await conn.fetch(_HOLD, retried, retried[0], retried[-1])
        await conn.execute(_HOLD_SUBSCRIPTIONS, sorted({record["subscription_id"] for record in touched}))
    return retried


async def cancel_all(
    conn: asyncpg.Connection, delivery_ids: Collection[UUID], statuses: Collection[str] = UNFINISHED
) -> list[UUID]:
    """End those that are unfinished, and of these statuses, as `cancel`; return which they were."""
    if not delivery_ids:
        return []
    ids, wanted = sorted(set(delivery_ids)), sorted(UNFINISHED.intersection(statuses))
    canceled = [record["id"] for record in await conn.fetch(_LOCK_OF_STATUS, ids, ids[0], ids[-1], wanted)]
    if canceled:
        await conn.execute(_END, canceled, canceled[0], canceled[-1], Status.CANCELED, CANCELED_BY_OPERATOR)
    return canceled


async def cancel(conn: asyncpg.Connection, delivery_id: UUID) -> DeliveryRow | Missing | Refused:
    """End an unfinished delivery as canceled. An attempt that is under way is not called back."""
    record = await conn.fetchrow(_CANCEL, delivery_id, _UNFINISHED, CANCELED_BY_OPERATOR)
    if record is not None:
        return DeliveryRow(**record)
    row = await get(conn, delivery_id)
    if isinstance(row, Missing):
        return row
    return Refused(f"the delivery is {row.status}; only an unfinished one can be canceled")


async def end_unfinished(
    conn: asyncpg.Connection, subscription_id: UUID, *, status: Status, reason: str, limit: int = END_AT_ONCE
) -> int:
    """End up to `limit` unfinished deliveries of a subscription that the caller has locked; returns how many.

    `status` is DEAD, with one dead letter for each (delivery, cycle), or CANCELED.
    """
    records = await conn.fetch(_LOCK_UNFINISHED, subscription_id, limit)
    if not records:
        return 0
    ids = [record["id"] for record in records]
    await conn.execute(_END, ids, ids[0], ids[-1], status, reason)
    if status is Status.DEAD:
        await bury(conn, ids)
    return len(ids)


async def bury(conn: asyncpg.Connection, deaths: Sequence[UUID]) -> None:
    """Give these deliveries, in order of id, one dead letter for each cycle that they died in; who listens is told.

    What is not dead is passed over. The letters are not marked published, so they are found and sent to hookhare.dead.
    """
    letters = [uuid7() for _ in deaths]
    await conn.execute(statements.INSERT_DEAD_LETTERS, letters, deaths, deaths[0])
    await operational.tell_deaths(conn, letters, least=deaths[0])
