"""Subscriptions: creating, changing, ending.

Every change of a configuration takes the exclusive advisory lock that admission takes shared, and writes the version
that it gave the table into its own row. So an event that is admitted after a change was committed is matched by the
changed configuration, and dispatchers refresh what they know by reading the rows with a version above theirs.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, assert_never
from uuid import UUID

import asyncpg
from sqlalchemy import ColumnElement, or_

from infra.store import deliveries, locks, operational, tables
from infra.store.outcomes import Missing, Refused
from infra.store.query import Page, column_list, equal, fetch_page
from schemas.deliveries import Status
from schemas.fields import is_operational
from schemas.health import FAILING_STREAK, Health
from schemas.ids import SUBSCRIPTION, delivery_key, event_key, public_id
from schemas.operational import OPERATIONAL_SOURCE, OperationalType
from schemas.subscriptions import State

DELETED = "the subscription was deleted"
DISABLED_BY_OPERATOR = "disabled by operator"
PAUSED_BY_OPERATOR = "paused by operator"
STATE_REASONS: Final = {
    State.ENABLED: None,
    State.PAUSED: PAUSED_BY_OPERATOR,
    State.DISABLED: DISABLED_BY_OPERATOR,
}
STANDARD_V1: Final = {"scheme": "standard", "versions": ["v1"]}
TEST_TYPE = "hookhare.test"
TEST_SOURCE = OPERATIONAL_SOURCE


@dataclass(frozen=True, slots=True)
class SubscriptionRow:
    """A subscription as it is stored; `headers`, `secrets`, `auth` and `tls` are encrypted."""

    id: UUID
    tenant: str
    url: str
    description: str
    event_types: list[str]
    state: str
    state_reason: str | None
    timeout_s: int
    retry_policy: dict[str, Any]
    rate_per_s: float | None
    rate_burst: int | None
    ordered: bool
    headers: bytes | None = field(repr=False)
    secrets: bytes = field(repr=False)
    version: int
    created_at: datetime
    updated_at: datetime
    mode: str
    breaker_until: datetime | None
    failing_since: datetime | None
    failures: int
    format: str = "standard"
    signature: dict[str, Any] = field(default_factory=lambda: dict(STANDARD_V1))
    auth: bytes | None = field(default=None, repr=False)
    tls: bytes | None = field(default=None, repr=False)
    handshake: bool = False
    validated_at: datetime | None = None
    allowed_per_min: int | None = None
    filter: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class MatchableRow:
    """As much of a subscription as says which events it wants."""

    id: UUID
    url: str
    event_types: list[str]
    filter: dict[str, Any] | None
    state: str


_COLUMNS = column_list(tables.subscriptions, SubscriptionRow)

_INSERT = f"""
INSERT INTO subscriptions
    (id, tenant, url, description, event_types, timeout_s, retry_policy, headers, secrets, version, rate_per_s,
     rate_burst, ordered, operational, format, signature, auth, tls, handshake, filter)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

# The breaker and the streak speak of an endpoint that was: enabled again, or elsewhere, it starts clean.
_SAVE = f"""
UPDATE subscriptions
SET url = $2, description = $3, event_types = $4, state = $5, state_reason = $6, timeout_s = $7, retry_policy = $8,
    headers = $9, secrets = $10, version = $11, rate_per_s = $12, rate_burst = $13, ordered = $14,
    breaker_until = CASE WHEN url = $2 AND (state = $5 OR $5 <> 'enabled') THEN breaker_until END,
    failing_since = CASE WHEN url = $2 AND state = $5 THEN failing_since END,
    failures = CASE WHEN url = $2 AND state = $5 THEN failures ELSE 0 END,
    failing_told = failing_told AND url = $2 AND state = $5,
    operational = $15, format = $16, signature = $17, auth = $18, tls = $19, handshake = $20, filter = $21,
    validated_at = CASE WHEN url = $2 AND $20 THEN validated_at END,
    allowed_per_min = CASE WHEN url = $2 AND $20 THEN allowed_per_min END,
    updated_at = clock_timestamp()
WHERE id = $1
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

# Only where it was asked: at this URL, and of nobody who was answered meanwhile.
_UNANSWERED = """
SELECT id FROM subscriptions WHERE id = $1 AND url = $2 AND handshake AND validated_at IS NULL AND deleted_at IS NULL
"""

_AGREE = """
UPDATE subscriptions SET validated_at = clock_timestamp(), allowed_per_min = $3, version = $4
WHERE id = $1 AND url = $2 AND handshake AND validated_at IS NULL AND deleted_at IS NULL
"""

_DISABLE = """
UPDATE subscriptions
SET state = 'disabled', state_reason = $2, version = $3, failing_since = NULL, failures = 0, failing_told = false,
    updated_at = clock_timestamp()
WHERE id = $1
"""

# $3 its streak, by when it began; NULL whatever it is.
_ENABLED_AT = """
SELECT failing_since, failures FROM subscriptions
WHERE id = $1 AND url = $2 AND state <> 'disabled' AND deleted_at IS NULL
  AND ($3::timestamptz IS NULL OR failing_since = $3)
"""

_STREAK = "SELECT state, failing_since, failures FROM subscriptions WHERE id = $1"

_DELETE = """
UPDATE subscriptions
SET deleted_at = clock_timestamp(), headers = NULL, auth = NULL, tls = NULL, secrets = $2, version = $3,
    updated_at = clock_timestamp()
WHERE id = $1 AND deleted_at IS NULL
RETURNING id
"""

_INSERT_TEST_EVENT = """
INSERT INTO events (id, tenant, source, external_id, type, time, data, traceparent)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""

_INSERT_TEST_DELIVERY = """
INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence, ordinal)
VALUES ($1, $2, $3, $4, $5, 'held', 0, 0, 0, CASE WHEN $6 THEN nextval('delivery_ordinals') END)
"""


async def create(
    conn: asyncpg.Connection,
    *,
    subscription_id: UUID,
    tenant: str,
    url: str,
    description: str,
    event_types: list[str],
    timeout_s: int,
    retry_policy: dict[str, Any],
    headers: bytes | None,
    secrets: bytes,
    rate_per_s: float | None = None,
    rate_burst: int | None = None,
    ordered: bool = False,
    format: str = "standard",  # noqa: A002 - the column's own name
    signature: dict[str, Any] | None = None,
    auth: bytes | None = None,
    tls: bytes | None = None,
    handshake: bool = False,
    filter: dict[str, Any] | None = None,  # noqa: A002 - the column's own name
) -> SubscriptionRow:
    """Store a new, enabled subscription. Events admitted after the commit reach it."""
    version = await locks.change_subscriptions(conn)
    record = await conn.fetchrow(
        _INSERT,
        subscription_id,
        tenant,
        url,
        description,
        event_types,
        timeout_s,
        retry_policy,
        headers,
        secrets,
        version,
        rate_per_s,
        rate_burst,
        ordered,
        any(map(is_operational, event_types)),
        format,
        signature or STANDARD_V1,
        auth,
        tls,
        handshake,
        filter,
    )
    assert record is not None
    await operational.tell(conn, OperationalType.CREATED, subscription_id)
    return SubscriptionRow(**record)


async def get(conn: asyncpg.Connection, subscription_id: UUID) -> SubscriptionRow | Missing:
    return await _select(conn, subscription_id, "")


async def list_page(
    conn: asyncpg.Connection,
    *,
    tenant: str | None,
    state: str | None,
    health: Health | None = None,
    after: UUID | None,
    limit: int,
) -> Page[SubscriptionRow]:
    """Subscriptions that are not deleted, newest first."""
    table = tables.subscriptions
    conditions = [table.c.deleted_at.is_(None), *equal((table.c.tenant, tenant), (table.c.state, state))]
    if health is not None:
        conditions += _of_health(health)
    return await fetch_page(conn, table, SubscriptionRow, conditions, after=after, limit=limit)


async def list_matchable(
    conn: asyncpg.Connection, tenant: str, *, after: UUID | None, limit: int
) -> Page[MatchableRow]:
    """What an event of the tenant may match, newest first."""
    table = tables.subscriptions
    conditions = [table.c.deleted_at.is_(None), table.c.tenant == tenant, table.c.state != State.DISABLED]
    return await fetch_page(conn, table, MatchableRow, conditions, after=after, limit=limit)


async def lock_for_change(conn: asyncpg.Connection, subscription_id: UUID) -> SubscriptionRow | Missing:
    """The subscription as it is, locked. What `save` writes is of a new version."""
    await locks.change_subscriptions(conn)
    return await _select(conn, subscription_id, "FOR NO KEY UPDATE")


async def save(conn: asyncpg.Connection, row: SubscriptionRow) -> SubscriptionRow:
    """Write the configuration of a row that came from `lock_for_change`.

    A disabled one keeps no backlog: what is unfinished becomes dead, with a dead letter each.
    """
    before = await conn.fetchrow(_STREAK, row.id)
    version = await conn.fetchval("SELECT version FROM subscription_version")
    record = await conn.fetchrow(
        _SAVE,
        row.id,
        row.url,
        row.description,
        row.event_types,
        row.state,
        row.state_reason,
        row.timeout_s,
        row.retry_policy,
        row.headers,
        row.secrets,
        version,
        row.rate_per_s,
        row.rate_burst,
        row.ordered,
        any(map(is_operational, row.event_types)),
        row.format,
        row.signature,
        row.auth,
        row.tls,
        row.handshake,
        row.filter,
    )
    assert before is not None
    assert record is not None
    if row.state == State.DISABLED and before["state"] != State.DISABLED:
        streak = operational.streak_data(before["failing_since"], before["failures"])
        await operational.tell(conn, OperationalType.DISABLED, row.id, streak)
    else:
        await operational.tell(conn, OperationalType.UPDATED, row.id)
    if row.state == State.DISABLED:
        reason = row.state_reason or DISABLED_BY_OPERATOR
        await deliveries.end_unfinished(conn, row.id, status=Status.DEAD, reason=reason)
    return SubscriptionRow(**record)


async def agree(conn: asyncpg.Connection, subscription_id: UUID, *, url: str, allowed_per_min: int | None) -> None:
    """Its endpoint at `url` agreed to take deliveries, so many a minute. A new version: every dispatcher learns of it.

    Nothing, without waiting for anybody, where that is known already, or where nobody asks it any more.
    """
    if await conn.fetchval(_UNANSWERED, subscription_id, url) is None:
        return
    version = await locks.change_subscriptions(conn)
    await conn.execute(_AGREE, subscription_id, url, allowed_per_min, version)


async def disable(
    conn: asyncpg.Connection, subscription_id: UUID, *, url: str, reason: str, failing_since: datetime | None = None
) -> bool:
    """Disable a subscription because of what its endpoint at `url` said; True if that ended it.

    False, without waiting for anybody, when it is disabled or deleted already, or has another URL by now. So it is
    when its streak is not the one that began at `failing_since`: something was delivered meanwhile.
    """
    if await conn.fetchrow(_ENABLED_AT, subscription_id, url, failing_since) is None:
        return False
    version = await locks.change_subscriptions(conn)
    before = await conn.fetchrow(f"{_ENABLED_AT} FOR NO KEY UPDATE", subscription_id, url, failing_since)
    if before is None:
        return False
    await conn.execute(_DISABLE, subscription_id, reason, version)
    streak = operational.streak_data(before["failing_since"], before["failures"])
    await operational.tell(conn, OperationalType.DISABLED, subscription_id, streak)
    await deliveries.end_unfinished(conn, subscription_id, status=Status.DEAD, reason=reason)
    return True


async def delete(conn: asyncpg.Connection, subscription_id: UUID, *, no_secrets: bytes) -> bool:
    """Delete a subscription; what is unfinished becomes canceled. False when there is none.

    The row stays for its history, without its headers and with `no_secrets`, an encrypted empty list.
    """
    version = await locks.change_subscriptions(conn)
    if await conn.fetchval(_DELETE, subscription_id, no_secrets, version) is None:
        return False
    await operational.tell(conn, OperationalType.DELETED, subscription_id)
    await deliveries.end_unfinished(conn, subscription_id, status=Status.CANCELED, reason=DELETED)
    return True


async def send_test(
    conn: asyncpg.Connection, subscription_id: UUID, *, now: datetime, external_id: str, traceparent: str | None
) -> deliveries.DeliveryRow | Missing | Refused:
    """Store a test event and its one delivery, in the endpoint's backlog, whatever types the subscription asks for."""
    row = await _select(conn, subscription_id, "FOR NO KEY UPDATE")
    if isinstance(row, Missing):
        return row
    if row.state != State.ENABLED:
        return Refused(f"the subscription is {row.state}; only an enabled one can be tested")
    event_id = event_key(int(now.timestamp() * 1000), row.tenant, TEST_SOURCE, external_id)
    delivery_id = delivery_key(event_id, subscription_id)
    data = json.dumps(
        {"message": "A test from Hookhare.", "subscription": public_id(SUBSCRIPTION, subscription_id)}
    ).encode()
    await conn.execute(
        _INSERT_TEST_EVENT, event_id, row.tenant, TEST_SOURCE, external_id, TEST_TYPE, now, data, traceparent
    )
    await conn.execute(
        _INSERT_TEST_DELIVERY, delivery_id, event_id, subscription_id, row.tenant, TEST_TYPE, row.ordered
    )
    await conn.execute("UPDATE subscriptions SET mode = 'held' WHERE id = $1 AND mode <> 'held'", subscription_id)
    delivery = await deliveries.get(conn, delivery_id)
    assert isinstance(delivery, deliveries.DeliveryRow)
    return delivery


def _of_health(health: Health) -> list[ColumnElement[bool]]:
    """What `judge_health` says of the row alone, as conditions."""
    c = tables.subscriptions.c
    disabled = c.state == State.DISABLED
    failing = or_(c.breaker_until.is_not(None), c.failures >= FAILING_STREAK)
    match health:
        case Health.DISABLED:
            return [disabled]
        case Health.FAILING:
            return [~disabled, failing]
        case Health.DEGRADED:
            return [~disabled, ~failing, c.failures > 0]
        case Health.HEALTHY:
            return [~disabled, ~failing, c.failures == 0]
        case _:
            assert_never(health)


async def _select(conn: asyncpg.Connection, subscription_id: UUID, locking: str) -> SubscriptionRow | Missing:
    record = await conn.fetchrow(
        f"SELECT {_COLUMNS} FROM subscriptions WHERE id = $1 AND deleted_at IS NULL {locking}",  # noqa: S608
        subscription_id,
    )
    return Missing() if record is None else SubscriptionRow(**record)
