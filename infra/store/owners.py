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
    ATTEMPT = "attempts"
    API_KEY = "api_keys"
    AUDIT_ENTRY = "audit_log"


_OF_ITS_DELIVERY = "SELECT tenant FROM deliveries WHERE id = (SELECT delivery_id FROM attempts WHERE id = $1)"


async def tenant_of(conn: asyncpg.Connection, owned: Owned, key: UUID) -> str | None:
    """The tenant of a row, which never changes; None where there is no such row, or it is of none."""
    of = _OF_ITS_DELIVERY if owned is Owned.ATTEMPT else f"SELECT tenant FROM {owned} WHERE id = $1"  # noqa: S608
    tenant: str | None = await conn.fetchval(of, key)
    return tenant
