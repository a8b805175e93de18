"""What is done to an event that was admitted: it is sent again, or what it said is expunged."""

from typing import Final
from uuid import UUID

import asyncpg
from aiohttp import web

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.caller import check_owned
from consumer_api.commands import Redelivery
from consumer_api.context import STORE
from consumer_api.errors import ErrorCode, conflict
from consumer_api.idempotency import keep
from consumer_api.outcomes import done
from consumer_api.presentation import expunged_view, redelivery_view
from consumer_api.queries import PartQuery
from consumer_api.reading import path_id, read_json, read_query
from consumer_api.route import Route
from consumer_api.views import ExpungedView, RedeliveredView, RedeliveryView
from dispatcher.core.topics import matches
from infra.store import expunging, redelivery
from infra.store.outcomes import Missing
from infra.store.owners import Owned
from infra.store.redelivery import Sent
from schemas.errors import InvalidInput
from schemas.ids import DELIVERY, EVENT, SUBSCRIPTION, public_id
from schemas.scopes import Scope

MOST_AT_ONCE: Final = 500  # deliveries of one call: as many subscriptions are locked meanwhile

_NO_EVENT: Final = "event (it may not have been admitted yet)"


def routes() -> list[Route]:
    one = "/v1/events/{event_id}"
    return [
        Route(
            method="POST",
            path=f"{one}/redeliver",
            idempotent=True,
            handler=redeliver,
            scope=Scope.REPLAYS_WRITE,
            query=PartQuery,
            body=Redelivery,
            body_optional=True,
            answers={202: RedeliveryView},
            errors=(ErrorCode.CONFLICT, ErrorCode.EXPUNGED),
        ),
        Route(
            method="POST",
            path=f"{one}/expunge",
            handler=expunge,
            scope=Scope.EVENTS_EXPUNGE,
            answers={200: ExpungedView},
        ),
    ]


async def redeliver(request: web.Request) -> web.Response:
    """Send an event again: its deliveries that have ended begin anew, with the same webhook-id; or one of them.

    A subscription that is named gets it also where it had no delivery of it, as one that was made later: if it is
    enabled, and the event is of its types, whatever its filter says.
    """
    event_id = path_id(request, EVENT, "event_id")
    after = read_query(request, PartQuery).cursor
    asked = await read_json(request, Redelivery, optional=True)
    async with request.app[STORE].transaction() as conn:
        if asked.subscription_id is not None:
            await check_owned(request, conn, Owned.SUBSCRIPTION, asked.subscription_id)
            if after is not None:
                raise InvalidInput.of("cursor", "is for all deliveries of an event, and not with subscription_id")
        event = done(await redelivery.lock_event(conn, event_id), _NO_EVENT)
        if asked.subscription_id is None:
            sent, next_after = await redelivery.to_all(conn, event, after=after, limit=MOST_AT_ONCE)
            results = [_result(one.row.subscription_id, one.row.id, one.reason) for one in sent]
        else:
            results, next_after = [await _to_one(conn, event, asked.subscription_id)], None
        view = redelivery_view(event_id, results, next_after)
        to = asked.subscription_id and public_id(SUBSCRIPTION, asked.subscription_id)
        told = {"subscription_id": to} | {name: view[name] for name in ("redelivered", "created", "skipped")}
        await audit.record(request, conn, "event.redelivered", view["event_id"], tenant=event.tenant, after=told)
        return await keep(request, conn, json_answer(view, status=202))


async def expunge(request: web.Request) -> web.Response:
    """Overwrite what an event said, for good, and cancel its deliveries that have not ended.

    Gone are its `data` and `headers`, what endpoints answered to it, and what was published under its id and said
    something else. It cannot be sent again; published again it is a duplicate. What stays says when and where to
    something was sent. Repeated, it is answered again.
    """
    event_id = path_id(request, EVENT, "event_id")
    async with request.app[STORE].transaction() as conn:
        expunction = done(await expunging.expunge(conn, event_id), _NO_EVENT)
        view = expunged_view(expunction)
        await audit.record(request, conn, "event.expunged", view["id"], tenant=expunction.tenant, after=view)
    return json_answer(view)


async def _to_one(conn: asyncpg.Connection, event: Sent, subscription_id: UUID) -> RedeliveredView:
    row = await redelivery.again(conn, event, subscription_id)
    if not isinstance(row, Missing):
        return _result(subscription_id, done(row, "delivery").id, None)
    target = done(await redelivery.lock_target(conn, subscription_id), "subscription")
    if target.tenant != event.tenant:
        raise conflict("the subscription is of another tenant than the event")
    if not any(matches(pattern, event.type) for pattern in target.event_types):
        raise conflict(f"the subscription has no delivery of the event, and its event_types do not match {event.type}")
    # Whoever made it meanwhile has committed by now: the subscription is locked.
    row = await redelivery.again(conn, event, subscription_id)
    if not isinstance(row, Missing):
        return _result(subscription_id, done(row, "delivery").id, None)
    made = await redelivery.add(conn, event, target)
    return _result(subscription_id, made.id, None, created=True)


def _result(subscription_id: UUID, delivery_id: UUID, reason: str | None, *, created: bool = False) -> RedeliveredView:
    return {
        "subscription_id": public_id(SUBSCRIPTION, subscription_id),
        "delivery_id": public_id(DELIVERY, delivery_id),
        "result": "created" if created else "redelivered" if reason is None else "skipped",
        "reason": reason,
    }
