"""The audit log: who changed what, when and from where. Rows are added and never changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from uuid_utils.compat import uuid7

_INSERT = """
INSERT INTO audit_log (id, tenant, key_id, action, target, address, request_id, before, after)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that a caller changed. `before` and `after` are as the API shows them, so without secrets."""

    tenant: str | None
    key_id: UUID
    action: str
    target: str
    address: str | None
    request_id: str
    before: Mapping[str, Any] | None = field(default=None, repr=False)
    after: Mapping[str, Any] | None = field(default=None, repr=False)


async def add(conn: asyncpg.Connection, change: Change) -> None:
    """Record a change, in the transaction that makes it."""
    await conn.execute(
        _INSERT,
        uuid7(),
        change.tenant,
        change.key_id,
        change.action,
        change.target,
        change.address,
        change.request_id,
        _plain(change.before),
        _plain(change.after),
    )


def _plain(shown: Mapping[str, Any] | None) -> Any:
    """What the API shows, as plain JSON: moments and the like as it writes them."""
    return None if shown is None else orjson.loads(orjson.dumps(shown, option=orjson.OPT_UTC_Z))
