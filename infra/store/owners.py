"""Whose a row is."""

from enum import StrEnum
from uuid import UUID

import asyncpg


class Owned(StrEnum):
    """What belongs to a tenant: the table that it stands in."""

    SUBSCRIPTION = "subscriptions"
    EVENT = "events"
    DELIVERY = "deliveries"
    DEAD_LETTER = "dead_letters"
    REPLAY = "replays"
    API_KEY = "api_keys"


async def tenant_of(conn: asyncpg.Connection, owned: Owned, key: UUID) -> str | None:
    """The tenant of a row, which never changes; None where there is no such row, or it is of none."""
    tenant: str | None = await conn.fetchval(f"SELECT tenant FROM {owned} WHERE id = $1", key)  # noqa: S608
    return tenant
