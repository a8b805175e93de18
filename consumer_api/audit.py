"""Recording who changed what, in the transaction that changes it."""

from collections.abc import Mapping
from typing import Any

import asyncpg
from aiohttp import web

from consumer_api.context import ADDRESS, CALLER, REQUEST_ID
from infra.store import audit


async def record(
    request: web.Request,
    conn: asyncpg.Connection,
    action: str,
    target: str,
    *,
    tenant: str | None,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    """Add to the audit log that the caller did `action` (such as `subscription.updated`) to what has the id `target`.

    `before` and `after` are views, as callers are shown them: nothing secret stands in one. `tenant` is the target's.
    """
    await audit.add(
        conn,
        audit.Change(
            tenant=tenant,
            key_id=request[CALLER].key_id,
            action=action,
            target=target,
            address=request[ADDRESS],
            request_id=request[REQUEST_ID],
            before=before,
            after=after,
        ),
    )
