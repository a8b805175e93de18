"""What the commands change of keys, in the audit log: without a key, an address and a request, for there is none."""

from datetime import UTC, datetime

import asyncpg

from consumer_api.key_views import key_view
from infra.store import audit
from infra.store.api_keys import ApiKeyRow
from schemas.ids import API_KEY, public_id


async def record_key(
    conn: asyncpg.Connection, what: str, *, before: ApiKeyRow | None = None, after: ApiKeyRow | None = None
) -> None:
    """Record that a key was created, rotated or revoked, in the transaction that does it."""
    row, now = after or before, datetime.now(UTC)
    assert row is not None
    await audit.add(
        conn,
        audit.Change(
            tenant=row.tenant,
            key_id=None,
            action=f"key.{what}",
            target=public_id(API_KEY, row.id),
            address=None,
            request_id=None,
            before=None if before is None else key_view(before, now),
            after=None if after is None else key_view(after, now),
        ),
    )
