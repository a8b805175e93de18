"""`/v1/events`: publishing, and what was admitted."""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final
from uuid import UUID

from aiohttp import web
from msgspec.structs import replace

from consumer_api.answers import json_answer
from consumer_api.context import BROKER, CALLER, CLAIMED, SETTINGS, STORE, TELEMETRY
from consumer_api.errors import ApiError, ErrorCode, conflict, not_published, too_large
from consumer_api.event_checks import EVENT_ERRORS, refusal, verdicts, warnings
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.idempotency import fresh_id
from consumer_api.outcomes import done
from consumer_api.presentation import accepted_view, event_view
from consumer_api.publishing import EventCreate, requested_event
from consumer_api.queries import EventsQuery
from consumer_api.reading import path_id, read_query, read_raw_json, tenant_for
from consumer_api.route import Route
from consumer_api.tracing import publish_span
from consumer_api.views import AcceptedEventView, EventView
from infra.broker.base import Outgoing, ToEvents
from infra.store import history
from schemas.errors import BrokerError, Problem
from schemas.events import DEFAULT_TENANT, Event, event_message
from schemas.ids import EVENT, event_key, public_id
from schemas.raw_json import MAX_DEPTH
from schemas.scopes import Scope

_NO_EVENT: Final = "event (it may not have been admitted yet, or was dropped as a duplicate of an earlier one)"


def routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/events",
            idempotent=True,
            handler=publish,
            scope=Scope.EVENTS_WRITE,
            body=EventCreate,
            answers={202: AcceptedEventView},
            errors=(ErrorCode.CONFLICT, ErrorCode.BROKER_UNAVAILABLE, ErrorCode.BROKER_REFUSED, *EVENT_ERRORS),
        ),
        Route(
            method="GET",
            path="/v1/events",
            handler=list_events,
            scope=Scope.EVENTS_READ,
            query=EventsQuery,
            answers={200: exported(EventView)},
            errors=LIST_ERRORS,
        ),
        Route(
            method="GET", path="/v1/events/{event_id}", handler=get, scope=Scope.EVENTS_READ, answers={200: EventView}
        ),
    ]


async def publish(request: web.Request) -> web.Response:
    """Publish an event. 202 once the broker has confirmed that it stored it.

    An event with a known (tenant, source, id) is not published again: 202 with the id and the time that it has when it
    says the same, 409 when it says something else. One that breaks the schema of its type is 422, or told in `warnings`
    where the installation only warns.
    """
    settings, now, made_id = request.app[SETTINGS], datetime.now(UTC), fresh_id(request)
    accepted_ms = int(now.timestamp() * 1000)
    event = await read_requested(request, now=now, fresh_id=made_id)
    may_be_known = event.external_id != made_id or CLAIMED in request
    if may_be_known and (known := await _known(request, event)) is not None:
        return known
    verdict = (await verdicts(request, [event])).get(0)
    if (fault := refusal(verdict)) is not None:
        raise ApiError(fault)
    with publish_span(request) as traceparent:
        message = event_message(replace(event, accepted_ms=accepted_ms, traceparent=traceparent))
        try:
            await request.app[BROKER].publish(
                Outgoing(ToEvents(event.type), message), timeout_s=settings.broker_timeout_s
            )
        except BrokerError as error:
            raise not_published(error, event.external_id) from error
    key = event_key(accepted_ms, event.tenant, event.source, event.external_id)
    return _accepted(event, key, duplicate=False, warned=warnings(verdict))


async def read_requested(request: web.Request, *, now: datetime, fresh_id: str) -> Event:
    """The event in the body, of the caller's tenant, with all that is checked of one before it is published."""
    body = await read_raw_json(request, max_depth=MAX_DEPTH)
    own, most = request[CALLER].tenant, request.app[SETTINGS].max_event_bytes
    event = requested_event(body, now=now, fresh_id=fresh_id, default_tenant=own or DEFAULT_TENANT)
    tenant_for(request, event.tenant)
    if len(event.data) > most:
        raise too_large("data", most)
    return event


async def list_events(request: web.Request) -> web.StreamResponse:
    """List events that were admitted, the newest first."""
    query = read_query(request, EventsQuery)
    read = partial(history.list_events, wanted=query.wanted())
    return await list_answer(request, query, read, event_view, EventView, name="events")


async def get(request: web.Request) -> web.Response:
    """Get an event, its data byte for byte as it came."""
    event_id = path_id(request, EVENT, "event_id")
    async with request.app[STORE].connection() as conn:
        row = done(await history.get_event(conn, event_id), _NO_EVENT)
    return json_answer(event_view(row))


async def _known(request: web.Request, event: Event) -> web.Response | None:
    """The answer to an event that was admitted before. Raises 409 when that one says something else.

    One that was published and is not admitted yet is not seen; then admission drops the second of them, and counts it.
    """
    metrics = request.app[TELEMETRY].metrics
    async with request.app[STORE].connection() as conn:
        known = await history.known_event(
            conn, event.tenant, event.source, event.external_id, window_s=request.app[SETTINGS].dedupe_window_s
        )
        if known is None:
            return None
        stored_time = await history.event_time(conn, known.event_id)
    if not known.is_repeated_by(event.digest):
        metrics.events_conflict.add(1)
        message = f"was already used for {public_id(EVENT, known.event_id)}, which says something else"
        raise conflict(f"id: {message}", [Problem("id", message)])
    metrics.events_duplicate.add(1)
    # Past its retention an event is gone, and its time with it; then the caller's own is all there is.
    return _accepted(replace(event, time=stored_time or event.time), known.event_id, duplicate=True)


def _accepted(event: Event, key: UUID, *, duplicate: bool, warned: Sequence[Problem] = ()) -> web.Response:
    return json_answer(accepted_view(event, key, duplicate=duplicate, warnings=warned), status=202)
