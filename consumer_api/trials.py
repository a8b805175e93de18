"""`POST /v1/subscriptions/{id}/test`: a test event, and what became of its first attempt if that is soon."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic
from typing import Final
from uuid import UUID

from aiohttp import web
from uuid_utils.compat import uuid7

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.changing import subscription_key
from consumer_api.context import STORE, TRIALS
from consumer_api.errors import ErrorCode
from consumer_api.outcomes import done
from consumer_api.presentation import attempt_view, delivery_view
from consumer_api.queries import TrialQuery
from consumer_api.reading import read_query
from consumer_api.route import Route
from consumer_api.tracing import callers_traceparent
from consumer_api.views import TrialView
from infra.store import deliveries, history, subscriptions
from infra.store.store import Store
from schemas.deliveries import ENDED
from schemas.errors import StoreError
from schemas.ids import SUBSCRIPTION, public_id
from schemas.scopes import Scope

MOST_WAITING: Final = 16  # each asks the database again and again; who comes beyond is answered at once
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5


def routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/subscriptions/{subscription_id}/test",
            handler=test,
            scope=Scope.SUBSCRIPTIONS_WRITE,
            query=TrialQuery,
            answers={200: TrialView, 202: TrialView},
            errors=(ErrorCode.CONFLICT,),
        )
    ]


async def test(request: web.Request) -> web.Response:
    """Send a test event, and wait for its first attempt. 200 if that is recorded within `wait_s`.

    `attempt` is null where the delivery ended without one, and where there is none in time; that is 202. It is sent
    whatever types and filter the subscription has.
    """
    subscription_id = subscription_key(request)
    wait_s = read_query(request, TrialQuery).wait_s
    store = request.app[STORE]
    async with store.transaction() as conn:
        outcome = await subscriptions.send_test(
            conn,
            subscription_id,
            now=datetime.now(UTC),
            external_id=str(uuid7()),
            traceparent=callers_traceparent(request),
        )
        delivery = done(outcome, "subscription")
        view = delivery_view(delivery)
        target = public_id(SUBSCRIPTION, subscription_id)
        await audit.record(request, conn, "subscription.tested", target, tenant=delivery.tenant, after=view)
    trials = request.app[TRIALS]
    if wait_s and not trials.places.locked():
        with suppress(StoreError):  # the test is stored: an error would have it sent once more
            async with trials.places:
                answer = await _attempted(store, delivery.id, until_s=monotonic() + wait_s, stopping=trials.stopping)
            if answer is not None:
                return json_answer(answer)
    return json_answer({**view, "attempt": None}, status=202)


async def _attempted(store: Store, delivery: UUID, *, until_s: float, stopping: asyncio.Event) -> TrialView | None:
    """The delivery with its first attempt, or as it ended without; None if neither is so in time, or before a stop.

    No connection is kept while it waits.
    """
    pause_s = _FIRST_PAUSE_S
    while True:
        # In one view of the database: its end and its attempt are committed together, and are shown so.
        async with store.connection() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            attempts = await history.attempts_of(conn, delivery, limit=1)
            row = done(await deliveries.get(conn, delivery), "delivery")
        if attempts or row.status in ENDED:
            return {**delivery_view(row), "attempt": attempt_view(attempts[0]) if attempts else None}
        left_s = until_s - monotonic()
        if left_s <= 0 or stopping.is_set():
            return None
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
