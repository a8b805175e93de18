"""`/v1/replays`: begin many ended deliveries again, by a filter."""

from datetime import UTC, datetime
from functools import partial
from uuid import UUID

import asyncpg
from aiohttp import web
from uuid_utils.compat import uuid7

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.caller import check_owned
from consumer_api.commands import ReplayCreate
from consumer_api.context import SETTINGS, STORE
from consumer_api.errors import ErrorCode, conflict
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.idempotency import keep
from consumer_api.outcomes import done
from consumer_api.presentation import replay_count_view, replay_view, replay_with_progress_view
from consumer_api.queries import ReplaysQuery
from consumer_api.reading import path_id, read_json, read_query
from consumer_api.route import Route
from consumer_api.searching import searching
from consumer_api.views import ReplayCountView, ReplayView, ReplayWithProgressView
from infra.store import replays, subscriptions
from infra.store.outcomes import Missing
from infra.store.owners import Owned
from schemas.errors import InvalidInput
from schemas.ids import REPLAY
from schemas.scopes import Scope
from schemas.subscriptions import State


def routes() -> list[Route]:
    one, read, write = "/v1/replays/{replay_id}", Scope.REPLAYS_READ, Scope.REPLAYS_WRITE
    return [
        Route(
            method="POST",
            path="/v1/replays",
            idempotent=True,
            handler=create,
            scope=write,
            body=ReplayCreate,
            answers={200: ReplayCountView, 202: ReplayView},
            errors=(ErrorCode.NOT_FOUND, ErrorCode.CONFLICT, ErrorCode.QUERY_TOO_BROAD),
        ),
        Route(
            method="GET",
            path="/v1/replays",
            handler=list_replays,
            scope=read,
            query=ReplaysQuery,
            answers={200: exported(ReplayView)},
            errors=LIST_ERRORS,
        ),
        Route(method="GET", path=one, handler=get, scope=read, answers={200: ReplayWithProgressView}),
        Route(
            method="POST",
            path=f"{one}/cancel",
            handler=cancel,
            scope=write,
            answers={200: ReplayView},
            errors=(ErrorCode.CONFLICT,),
        ),
    ]


async def create(request: web.Request) -> web.Response:
    """Replay what matches now: it is counted, and a dispatcher works through it. Without a body: what it must have.

    200 with `dry_run`: it is counted, and nothing is stored or begun.
    """
    asked = await read_json(request, ReplayCreate, optional=True)
    wanted, max_per_s = asked.wanted(), asked.max_per_s or request.app[SETTINGS].replay_max_per_s
    now = datetime.now(UTC)
    async with searching(request) as conn:
        await _check_subscription(request, conn, wanted.subscription_id)
        if asked.dry_run:
            frozen = replays.freeze(wanted, now=now)
            return json_answer(replay_count_view(frozen, await replays.count(conn, frozen)))
        done(await replays.check_number(conn, wanted.tenant), "replay")
        row = await replays.create(conn, replay_id=uuid7(), wanted=wanted, max_per_s=max_per_s, now=now)
        view = replay_view(row)
        await audit.record(request, conn, "replay.created", view["id"], tenant=row.tenant, after=view)
        location = {"Location": f"/v1/replays/{view['id']}"}
        return await keep(request, conn, json_answer(view, status=202, headers=location))


async def list_replays(request: web.Request) -> web.StreamResponse:
    """List replays, the newest first."""
    query = read_query(request, ReplaysQuery)
    read = partial(replays.list_page, tenant=query.tenant, state=query.state)
    return await list_answer(request, query, read, replay_view, ReplayView, name="replays")


async def get(request: web.Request) -> web.Response:
    """Get a replay, and how far it is."""
    replay_id = _id(request)
    async with request.app[STORE].connection() as conn:
        row = done(await replays.get(conn, replay_id), "replay")
        progress = await replays.progress(conn, replay_id)
    return json_answer(replay_with_progress_view(row, progress))


async def cancel(request: web.Request) -> web.Response:
    """Stop a running replay; deliveries that it has begun again go on."""
    replay_id = _id(request)
    async with request.app[STORE].transaction() as conn:
        before = done(await replays.get(conn, replay_id), "replay")
        row = done(await replays.cancel(conn, replay_id), "replay")
        view = replay_view(row)
        await audit.record(
            request, conn, "replay.canceled", view["id"], tenant=row.tenant, before=replay_view(before), after=view
        )
    return json_answer(view)


async def _check_subscription(request: web.Request, conn: asyncpg.Connection, subscription_id: UUID | None) -> None:
    """An early word about a replay of which every delivery would be skipped."""
    if subscription_id is None:
        return
    await check_owned(request, conn, Owned.SUBSCRIPTION, subscription_id)
    subscription = await subscriptions.get(conn, subscription_id)
    if isinstance(subscription, Missing):
        raise InvalidInput.of("subscription_id", "must be the id of a subscription that is not deleted")
    if subscription.state != State.ENABLED:
        raise conflict(f"the subscription is {subscription.state}; only an enabled one is replayed to")


def _id(request: web.Request) -> UUID:
    return path_id(request, REPLAY, "replay_id")
