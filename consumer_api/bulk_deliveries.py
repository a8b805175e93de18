"""`/v1/deliveries/retry` and `/v1/deliveries/cancel`: many deliveries at once, by a filter.

A call does a bounded part, in one transaction with its line of the audit log, and says where the next one goes on. So
nothing is left half done by a restart, no transaction is long, and who asks sees how far it is. It goes from the newest
to the oldest: what is made meanwhile is not part of it, and every call comes nearer to the end.
"""

from collections.abc import Awaitable, Callable
from typing import Final
from uuid import UUID

import asyncpg
from aiohttp import web

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.caller import check_owned
from consumer_api.commands import DeliveriesCancel, DeliveriesRetry
from consumer_api.context import STORE
from consumer_api.errors import ErrorCode
from consumer_api.presentation import bulk_view, filter_view
from consumer_api.queries import PartQuery
from consumer_api.reading import read_json, read_query
from consumer_api.route import Route
from consumer_api.searching import searching
from consumer_api.views import BulkView
from infra.store import deliveries, delivery_pages, replays
from infra.store.attempts import AttemptedFilter
from infra.store.owners import Owned, tenant_of
from schemas.scopes import Scope

CHANGED_ROWS: Final = 1_000
SCANNED_ROWS: Final = 50_000

_Act = Callable[[asyncpg.Connection, list[UUID]], Awaitable[list[UUID]]]


def routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path=f"/v1/deliveries/{handler.__name__}",
            operation=f"deliveries_{handler.__name__}_many",
            handler=handler,
            scope=Scope.DELIVERIES_WRITE,
            query=PartQuery,
            body=body,
            answers={200: BulkView},
            errors=(ErrorCode.NOT_FOUND, ErrorCode.QUERY_TOO_BROAD),
        )
        for handler, body in ((retry, DeliveriesRetry), (cancel, DeliveriesCancel))
    ]


async def retry(request: web.Request) -> web.Response:
    """Retry deliveries by a filter: what waits is attempted as soon as its endpoint takes it, a part a call."""
    asked = await read_json(request, DeliveriesRetry)
    return await _do(request, asked, "deliveries.retried", deliveries.retry_all)


async def cancel(request: web.Request) -> web.Response:
    """Cancel deliveries by a filter: what has not ended, a part a call; attempts under way are not called back."""
    asked = await read_json(request, DeliveriesCancel)

    async def cancel_all(conn: asyncpg.Connection, ids: list[UUID]) -> list[UUID]:
        return await deliveries.cancel_all(conn, ids, asked.status)

    return await _do(request, asked, "deliveries.canceled", cancel_all)


async def _do(request: web.Request, asked: DeliveriesRetry | DeliveriesCancel, action: str, act: _Act) -> web.Response:
    wanted, after = asked.wanted(), read_query(request, PartQuery).cursor
    async with searching(request) as conn:
        if wanted.subscription_id is not None:
            await check_owned(request, conn, Owned.SUBSCRIPTION, wanted.subscription_id)
        if asked.dry_run:
            return json_answer(bulk_view(await replays.count(conn, wanted), 0, None, dry_run=True))
        page = await delivery_pages.list_page(
            conn, AttemptedFilter(wanted), after=after, limit=CHANGED_ROWS, scanned_rows=SCANNED_ROWS
        )
    changed: list[UUID] = []
    if page.rows:
        async with request.app[STORE].transaction() as conn:
            changed = await act(conn, [row.id for row in page.rows])
            if changed:
                told = {"filter": filter_view(wanted), "changed": len(changed)}
                tenant = wanted.tenant
                if wanted.subscription_id is not None:
                    tenant = await tenant_of(conn, Owned.SUBSCRIPTION, wanted.subscription_id)
                await audit.record(request, conn, action, "deliveries", tenant=tenant, after=told)
    return json_answer(bulk_view(len(page.rows), len(changed), page.next_after))
