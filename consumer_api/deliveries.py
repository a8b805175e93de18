"""`/v1/deliveries`: what was sent where, every attempt at it, and what an operator may do about it."""

from functools import partial
from typing import Final
from uuid import UUID

import asyncpg
from aiohttp import web

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.context import STORE
from consumer_api.errors import ErrorCode
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.outcomes import done
from consumer_api.presentation import attempt_view, delivery_view
from consumer_api.queries import DeliveriesQuery
from consumer_api.reading import path_id, read_query
from consumer_api.route import Route
from consumer_api.timeline import BY_HAND, timeline
from consumer_api.views import DeliveryView, DeliveryWithAttemptsView
from infra.store import audit as audit_rows
from infra.store import dead_letters, deliveries, delivery_pages, history
from infra.store.deliveries import DeliveryRow
from schemas.ids import DELIVERY, public_id
from schemas.scopes import Scope

MAX_ATTEMPTS_SHOWN: Final = 500  # the latest: a policy makes at most 50 in a cycle
MAX_DEATHS_SHOWN: Final = 100  # the latest
MAX_DEEDS_SHOWN: Final = 100  # the latest
_CONFLICT: Final = (ErrorCode.CONFLICT,)
_UNSENDABLE: Final = (ErrorCode.CONFLICT, ErrorCode.EXPUNGED)


def routes() -> list[Route]:
    one = "/v1/deliveries/{delivery_id}"
    read, write = Scope.DELIVERIES_READ, Scope.DELIVERIES_WRITE
    return [
        Route(
            method="GET",
            path="/v1/deliveries",
            handler=list_deliveries,
            scope=read,
            query=DeliveriesQuery,
            answers={200: exported(DeliveryView)},
            errors=LIST_ERRORS,
        ),
        Route(method="GET", path=one, handler=get, scope=read, answers={200: DeliveryWithAttemptsView}),
        Route(
            method="POST",
            path=f"{one}/retry",
            handler=retry,
            scope=write,
            answers={202: DeliveryView},
            errors=_UNSENDABLE,
        ),
        Route(
            method="POST",
            path=f"{one}/cancel",
            handler=cancel,
            scope=write,
            answers={200: DeliveryView},
            errors=_CONFLICT,
        ),
        Route(
            method="POST",
            path=f"{one}/replay",
            handler=replay,
            scope=Scope.REPLAYS_WRITE,
            answers={202: DeliveryView},
            errors=_UNSENDABLE,
        ),
    ]


async def list_deliveries(request: web.Request) -> web.StreamResponse:
    """List deliveries, the newest first."""
    query = read_query(request, DeliveriesQuery)
    read = partial(delivery_pages.list_page, wanted=query.wanted())
    return await list_answer(request, query, read, delivery_view, DeliveryView, name="deliveries")


async def get(request: web.Request) -> web.Response:
    """Get a delivery, its latest attempts, and what became of it in order of time."""
    delivery_id = _id(request)
    async with request.app[STORE].connection() as conn:
        row = done(await deliveries.get(conn, delivery_id), "delivery")
        attempts = await history.attempts_of(conn, delivery_id, limit=MAX_ATTEMPTS_SHOWN)
        letters = await dead_letters.of_delivery(conn, delivery_id, limit=MAX_DEATHS_SHOWN)
        by_hand = await audit_rows.latest_of(conn, public_id(DELIVERY, row.id), BY_HAND, limit=MAX_DEEDS_SHOWN)
        admitted_at = await history.event_admitted_at(conn, row.event_id)
    view: DeliveryWithAttemptsView = {
        **delivery_view(row),
        "attempts": [attempt_view(attempt) for attempt in attempts],
        "timeline": timeline(row, attempts, letters, by_hand, admitted_at=admitted_at),
    }
    return json_answer(view)


async def retry(request: web.Request) -> web.Response:
    """Retry an unfinished delivery as soon as its endpoint takes it, instead of when its delay is over."""
    delivery_id = _id(request)
    async with request.app[STORE].transaction() as conn:
        before = done(await deliveries.get(conn, delivery_id), "delivery")
        row = done(await deliveries.retry_now(conn, delivery_id), "delivery")
        await _record(request, conn, "delivery.retried", before, row)
    return json_answer(delivery_view(row), status=202)


async def cancel(request: web.Request) -> web.Response:
    """Cancel an unfinished delivery; an attempt that is under way is not called back."""
    delivery_id = _id(request)
    async with request.app[STORE].transaction() as conn:
        before = done(await deliveries.get(conn, delivery_id), "delivery")
        row = done(await deliveries.cancel(conn, delivery_id), "delivery")
        await _record(request, conn, "delivery.canceled", before, row)
    return json_answer(delivery_view(row))


async def replay(request: web.Request) -> web.Response:
    """Replay an ended delivery: it begins again, with the same webhook-id."""
    delivery_id = _id(request)
    async with request.app[STORE].transaction() as conn:
        before = done(await deliveries.get(conn, delivery_id), "delivery")
        if not await deliveries.replay(conn, [delivery_id]):
            done(await deliveries.why_not_replayed(conn, delivery_id), "delivery")
        row = done(await deliveries.get(conn, delivery_id), "delivery")
        await _record(request, conn, "delivery.replayed", before, row)
    return json_answer(delivery_view(row), status=202)


async def _record(
    request: web.Request, conn: asyncpg.Connection, action: str, before: DeliveryRow, after: DeliveryRow
) -> None:
    """`before` was read unlocked, because locks begin with the subscription's: an attempt may have moved it since."""
    await audit.record(
        request,
        conn,
        action,
        public_id(DELIVERY, after.id),
        tenant=after.tenant,
        before=delivery_view(before),
        after=delivery_view(after),
    )


def _id(request: web.Request) -> UUID:
    return path_id(request, DELIVERY, "delivery_id")
