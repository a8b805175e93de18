"""Rows as the dispatcher would have left them, for tests of what operators do with them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from infra.store import replays, subscriptions
from infra.store.subscriptions import SubscriptionRow
from schemas.ids import delivery_key, event_key
from schemas.subscriptions import DEFAULT_POLICY

HOOK_URL = "https://example.com/hook"

_numbers = count(1)


async def add_subscription(conn: asyncpg.Connection, **given: Any) -> SubscriptionRow:
    """An enabled subscription; `secrets` and `headers` are what is stored, encrypted or not."""
    values: dict[str, Any] = {
        "subscription_id": uuid7(),
        "tenant": "default",
        "url": HOOK_URL,
        "description": "",
        "event_types": ["order.#"],
        "timeout_s": 15,
        "retry_policy": DEFAULT_POLICY.model_dump(mode="json"),
        "headers": None,
        "secrets": b"encrypted",
    }
    return await subscriptions.create(conn, **values | given)


async def add_event(
    conn: asyncpg.Connection,
    *,
    at: datetime | None = None,
    tenant: str = "default",
    source: str = "shop",
    external_id: str | None = None,
    type: str = "order.created",  # noqa: A002
    data: bytes = b'{"n":1}',
    digest: bytes | None = None,
) -> UUID:
    """An admitted event; with a `digest`, its identity is known too."""
    at = at or datetime.now(UTC)
    external_id = external_id or f"event-{next(_numbers)}"
    key = event_key(int(at.timestamp() * 1000), tenant, source, external_id)
    await conn.execute(
        "INSERT INTO events (id, tenant, source, external_id, type, time, data) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        *(key, tenant, source, external_id, type, at, data),
    )
    if digest is not None:
        await conn.execute(
            "INSERT INTO event_keys (tenant, source, external_id, event_id, digest) VALUES ($1, $2, $3, $4, $5)",
            *(tenant, source, external_id, key, digest),
        )
    return key


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim on a delivery, by a dispatcher's incarnation."""

    by: UUID
    fence: int = 1


async def add_delivery(
    conn: asyncpg.Connection,
    subscription: UUID,
    status: str,
    *,
    event: UUID | None = None,
    at: datetime | None = None,
    tenant: str = "default",
    event_type: str = "order.created",
    attempts: int = 0,
    cycle: int = 0,
    claim: Claim | None = None,
) -> UUID:
    """A delivery, of a new event unless one is given; a dead one with its dead letter."""
    event = event or await add_event(conn, at=at, tenant=tenant, type=event_type)
    key = delivery_key(event, subscription)
    soon = datetime.now(UTC) + timedelta(hours=1) if status == "retrying" else None
    await conn.execute(
        """
        INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, reason,
                                next_attempt_at, hint_due_at, claimed_by, claimed_at, fence)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $10, $11, $12, $13)
        """,
        *(key, event, subscription, tenant, event_type, status, attempts, cycle, f"why {status}", soon),
        *(claim and claim.by, claim and datetime.now(UTC), claim.fence if claim else 0),
    )
    if status == "dead":
        await conn.execute(
            """
            INSERT INTO dead_letters (id, kind, reason, tenant, delivery_id, cycle, subscription_id, event_id)
            VALUES ($1, 'delivery', 'it is dead', $2, $3, $4, $5, $6)
            """,
            *(uuid7(), tenant, key, cycle, subscription, event),
        )
    return key


async def add_attempt(conn: asyncpg.Connection, delivery: UUID, **given: Any) -> UUID:
    """An attempt that was answered with 500."""
    values = {
        "id": uuid7(),
        "delivery_id": delivery,
        "cycle": 0,
        "number": 1,
        "started_at": datetime.now(UTC),
        "duration_ms": 12,
        "outcome": "retry",
        "superseded": False,
        "status_code": 500,
        "failure": None,
        "reason": "the endpoint answered 500",
        "response_body": b"oops",
        "remote_address": "127.0.0.1",
        "url": "https://example.com/hook",
        "dispatcher": uuid7(),
    } | given
    names = ", ".join(values)
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    await conn.execute(f"INSERT INTO attempts ({names}) VALUES ({places})", *values.values())
    key = values["id"]
    assert isinstance(key, UUID)
    return key


async def add_message_letter(conn: asyncpg.Connection, **given: Any) -> UUID:
    """A dead letter of a message that was unreadable."""
    values = {
        "id": uuid7(),
        "kind": "unreadable",
        "reason": "type: is required",
        "message_id": str(uuid7()),
        "routing_key": "unreadable",
        "body": b"not json",
        "headers": None,
    } | given
    names = ", ".join(values)
    places = ", ".join(f"${number}" for number in range(1, len(values) + 1))
    await conn.execute(f"INSERT INTO dead_letters ({names}) VALUES ({places})", *values.values())
    key = values["id"]
    assert isinstance(key, UUID)
    return key


async def step_replay(conn: asyncpg.Connection, *, batch: int) -> bool:
    """What a dispatcher does with the first running replay, whatever its pace; False when none is running."""
    await conn.execute("UPDATE replays SET paced_since = clock_timestamp() - interval '1 hour' WHERE state = 'running'")
    running = await replays.take(conn, after=UUID(int=0))
    if running is None:
        return False
    await replays.advance(conn, running, count=batch, since_s=running.now_s)
    return True


async def delivery(conn: asyncpg.Connection, key: UUID) -> dict[str, Any]:
    """The whole row of a delivery."""
    record = await conn.fetchrow("SELECT * FROM deliveries WHERE id = $1", key)
    assert record is not None
    return dict(record)


async def mode(conn: asyncpg.Connection, subscription: UUID) -> str:
    """Whether a subscription's endpoint is open or held."""
    return str(await conn.fetchval("SELECT mode FROM subscriptions WHERE id = $1", subscription))


async def letters(conn: asyncpg.Connection, key: UUID) -> list[dict[str, Any]]:
    """The dead letters of a delivery, by cycle."""
    return [
        dict(record)
        for record in await conn.fetch("SELECT * FROM dead_letters WHERE delivery_id = $1 ORDER BY cycle", key)
    ]
