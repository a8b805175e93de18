"""The outbox of operational events: written in the transaction of what they tell of, published after it.

A row stands here until a dispatcher has published it with a confirm (dispatcher/announcements.py). Its id is the
event's id, so what is published twice is one event. Several dispatchers publish at once, so their order is not kept.

Who gets an event is found when it is admitted, a moment after the change: also a subscription that was created in
between, and none that was deleted or disabled in between. Nothing is written for a tenant of which no subscription
asks for such types at the time of the change: nobody could be told, and the hot path pays nothing.

They never cause themselves. Each has a cause that is no operational event, and no cause has more than one of a kind:

- created, updated, deleted: a request to the API.
- disabled: a subscription that a request to the API had created or enabled; it is disabled once.
- failing: the failed attempt of an ordinary event (`core/streak.judge`). Recovered: a failing that was told.
- dead: the death of a delivery of an ordinary event.

And an ordinary event has so many deliveries, each with so many attempts. So whatever the endpoints do, and whoever
listens to whom, there are no more operational events than causes; their deliveries fail, retry and die without a word.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from schemas.fields import OPERATIONAL_WORD
from schemas.operational import OperationalType


def _wanted(tenant: str) -> str:
    """Whether any subscription of the tenant asks for operational events."""
    return f"""EXISTS (SELECT 1 FROM subscriptions AS listener
                       WHERE listener.tenant = {tenant} AND listener.operational
                         AND listener.state <> 'disabled' AND listener.deleted_at IS NULL)"""  # noqa: S608


# The URL without its query, in which there may be a token. $1 id, $2 type, $3 subscription, $4 more of the data.
_TELL = f"""
INSERT INTO operational_events (id, tenant, type, data)
SELECT $1, s.tenant, $2,
       jsonb_build_object(
           'subscription_id', s.id, 'url', split_part(s.url, '?', 1), 'event_types', s.event_types,
           'state', s.state, 'reason', s.state_reason, 'failures', s.failures,
           'failing_since', to_char(s.failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
       ) || $4::jsonb
FROM subscriptions AS s WHERE s.id = $3 AND {_wanted("s.tenant")}
"""  # noqa: S608 -- our own text


def _tell_deaths(deliveries: str) -> str:
    """Of those dead letters that were written: their id is in $1. $2 the least delivery."""
    return f"""
INSERT INTO operational_events (id, tenant, type, data)
SELECT l.id, l.tenant, '{OperationalType.DEAD}',
       jsonb_build_object(
           'dead_letter_id', l.id, 'delivery_id', d.id, 'cycle', l.cycle, 'subscription_id', l.subscription_id,
           'event_id', l.event_id, 'event_type', d.event_type, 'reason', l.reason, 'attempts', d.attempts
       )
FROM dead_letters AS l JOIN {deliveries} AS d ON d.id = l.delivery_id AND d.id >= $2
WHERE l.id = ANY($1::uuid[]) AND split_part(d.event_type, '.', 1) <> '{OPERATIONAL_WORD}' AND {_wanted("l.tenant")}
"""  # noqa: S608 -- our own text


_TELL_DEATHS = _tell_deaths("deliveries")
_TAKE_UNPUBLISHED = (
    "SELECT id, tenant, type, data, created_at FROM operational_events ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED"
)
_FORGET_PUBLISHED = "DELETE FROM operational_events WHERE id = ANY($1::uuid[])"


async def tell(
    conn: asyncpg.Connection, kind: OperationalType, subscription_id: UUID, more: Mapping[str, Any] | None = None
) -> None:
    """Tell of a subscription as its row stands now; `more` takes the place of what the row no longer says."""
    await conn.execute(_TELL, uuid7(), kind, subscription_id, dict(more or {}))


async def tell_deaths(
    conn: asyncpg.Connection, letters: Sequence[UUID], *, least: UUID, among: str | None = None
) -> None:
    """Tell of those of these dead letters that were written; none is of a delivery before `least`.

    `among` names a partition that is detached by now, and has the deliveries.
    """
    await conn.execute(_TELL_DEATHS if among is None else _tell_deaths(among), letters, least)


async def take(conn: asyncpg.Connection, limit: int) -> list[asyncpg.Record]:
    """The next events to publish, locked until the transaction ends; another dispatcher takes others."""
    return await conn.fetch(_TAKE_UNPUBLISHED, limit)


async def forget(conn: asyncpg.Connection, ids: Sequence[UUID]) -> None:
    """These are published."""
    await conn.execute(_FORGET_PUBLISHED, ids)


def streak_data(failing_since: datetime | None, failures: int) -> dict[str, Any]:
    """A streak that the row no longer says, in the form that `tell` has it in."""
    moment = failing_since and failing_since.astimezone(UTC).replace(tzinfo=None)
    return {"failures": failures, "failing_since": moment and f"{moment.isoformat(timespec='microseconds')}Z"}
