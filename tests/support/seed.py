"""Rows for tests that look at one rule of the protocol: a subscription, its events and deliveries in any state."""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from infra.crypto import Vault, new_key
from infra.store import subscriptions
from infra.store.store import Store
from schemas.ids import delivery_key, event_key
from schemas.signatures import format_secret
from schemas.subscriptions import DEFAULT_POLICY, Secret, encode_secrets


@dataclass(frozen=True)
class Seed:
    """Makes rows in one store; `vault` decrypts what it made."""

    store: Store
    vault: Vault = field(default_factory=lambda: Vault([new_key()]))

    async def subscription(self, *event_types: str, **columns: object) -> UUID:
        """An enabled subscription, with `columns` of its row set directly after."""
        key = uuid7()
        secret = format_secret(bytes(range(32)))
        async with self.store.transaction() as connection:
            await subscriptions.create(
                connection,
                subscription_id=key,
                tenant="default",
                url="https://example.com/hook",
                description="",
                event_types=list(event_types) or ["#"],
                timeout_s=15,
                retry_policy=DEFAULT_POLICY.model_dump(mode="json"),
                headers=None,
                secrets=self.vault.encrypt(encode_secrets([Secret(secret)])),
            )
            await _set(connection, "subscriptions", key, columns)
        return key

    async def delivery(self, subscription: UUID, **columns: object) -> UUID:
        """An event and its delivery, held and unclaimed unless `columns` say otherwise."""
        external_id = str(uuid7())
        now = datetime.now(UTC)
        event = event_key(int(now.timestamp() * 1000), "default", "tests", external_id)
        key = delivery_key(event, subscription)
        async with self.store.transaction() as connection:
            await connection.execute(
                "INSERT INTO events (id, tenant, source, external_id, type, time, data) "
                "VALUES ($1, 'default', 'tests', $2, 'order.created', $3, $4)",
                event,
                external_id,
                now,
                b'{"n":1}',
            )
            await connection.execute(
                "INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, "
                "fence) VALUES ($1, $2, $3, 'default', 'order.created', 'held', 0, 0, 0)",
                key,
                event,
                subscription,
            )
            await _set(connection, "deliveries", key, columns)
        return key

    async def dispatcher(self, *, renewed_ago_s: float = 0, steady_for_s: float = 3600) -> UUID:
        """The heartbeat row of another dispatcher."""
        key = uuid7()
        async with self.store.connection() as connection:
            await connection.execute(
                "INSERT INTO dispatchers (id, host, pid, renewed_at, steady_since) VALUES ($1, 'other', 1, "
                "clock_timestamp() - make_interval(secs => $2), clock_timestamp() - make_interval(secs => $3))",
                key,
                renewed_ago_s,
                steady_for_s,
            )
        return key

    async def row(self, table: str, key: UUID) -> Any:
        async with self.store.connection() as connection:
            row = await connection.fetchrow(f"SELECT * FROM {table} WHERE id = $1", key)
            assert row is not None
            return row


async def _set(connection: asyncpg.Connection, table: str, key: UUID, columns: dict[str, object]) -> None:
    for name, value in columns.items():
        await connection.execute(f"UPDATE {table} SET {name} = $2 WHERE id = $1", key, value)
