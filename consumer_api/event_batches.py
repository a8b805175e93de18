"""`/v1/events/batch`: many events in one request, each with its own result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from aiohttp import web
from msgspec.structs import replace
from typing_extensions import TypedDict

from consumer_api.answers import json_answer
from consumer_api.context import BROKER, CALLER, NOT_SETTLED, SETTINGS, STORE, TELEMETRY
from consumer_api.errors import ApiError, ErrorCode, Fault, conflict, fault_of, not_published, too_large
from consumer_api.event_checks import refusal, verdicts, warnings
from consumer_api.idempotency import fresh_id
from consumer_api.presentation import accepted_view, problem_views
from consumer_api.publishing import EventBatchCreate, requested_batch, requested_event
from consumer_api.reading import read_raw_json, tenant_for
from consumer_api.route import Route
from consumer_api.tracing import publish_span
from consumer_api.views import AcceptedEventView, ErrorDetail
from infra.broker.base import Outgoing, ToEvents
from infra.store import history
from infra.store.catalogue import Verdict
from infra.store.history import KnownEvent
from schemas.errors import BrokerError, InvalidInput, Problem
from schemas.events import DEFAULT_TENANT, Event, event_message
from schemas.ids import EVENT, event_key, public_id
from schemas.raw_json import MAX_DEPTH
from schemas.scopes import Scope

_Identity = tuple[str, str, str]  # tenant, source, external id
_AROUND: Final = 2  # brackets around an event's own


class BatchErrorView(TypedDict):
    """Why an event of a batch was not accepted."""

    code: ErrorCode
    message: str
    details: list[ErrorDetail]


class BatchResultView(TypedDict):
    """What became of one event of a batch.

    `event` is told of an accepted one and of a duplicate, `error` of all others. One that was not published may be
    stored all the same: sent again with `external_id` as its `id`, it is the same event.
    """

    result: Literal["accepted", "duplicate", "conflict", "invalid", "not_published"]
    external_id: str | None
    event: AcceptedEventView | None
    error: BatchErrorView | None


class BatchView(TypedDict):
    """One result for each event, in the order that they were given in."""

    results: list[BatchResultView]


def routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/events/batch",
            idempotent=True,
            handler=publish_batch,
            scope=Scope.EVENTS_WRITE,
            body=EventBatchCreate,
            answers={200: BatchView},
            largest_body=lambda settings: settings.max_batch_bytes,
        )
    ]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What is known of the events with an identity: `known` was admitted before; else `first` is what was published.

    `error` is why the first was not published, if it was not; `time` the known one's, unless it is gone.
    """

    first: Event
    known: KnownEvent | None = None
    time: datetime | None = None
    error: BrokerError | None = None


async def publish_batch(request: web.Request) -> web.Response:
    """Publish up to 1,000 events: the broker has confirmed those whose result is `accepted`.

    Each has its own result, in the order given, as if it had been published alone; one does not keep the others back.
    What is `not_published` is to be sent again, with its `external_id` as its `id`.
    """
    body = await read_raw_json(request, max_depth=MAX_DEPTH + _AROUND)
    now = datetime.now(UTC)
    asked = [_asked(request, text, now, n) for n, text in enumerate(requested_batch(body))]
    outcomes = await _known(request, _firsts(asked))
    found = await _judged(request, asked, outcomes)
    refused = {place: fault for place, verdict in found.items() if isinstance(fault := refusal(verdict), Fault)}
    firsts = _firsts([one for place, one in enumerate(asked) if place not in refused])
    fresh = [event for identity, event in firsts.items() if identity not in outcomes]
    for event, error in zip(fresh, await _publish(request, fresh), strict=True):
        outcomes[_identity(event)] = _Outcome(event, error=error)
    results = []
    for place, one in enumerate(asked):
        if not isinstance(one, Event):
            results.append(_refused("invalid", None, one))
        elif place in refused:
            results.append(_refused("invalid", one.external_id, refused[place]))
        else:
            results.append(_result(one, outcomes[_identity(one)], warnings(found.get(place))))
    # Done once or not, what was not published must not be answered so for ever; nor what a schema stands in the way of.
    request[NOT_SETTLED] = bool(refused) or any(one["result"] == "not_published" for one in results)
    metrics = request.app[TELEMETRY].metrics
    metrics.events_duplicate.add(sum(one["result"] == "duplicate" for one in results))
    metrics.events_conflict.add(sum(one["result"] == "conflict" for one in results))
    answer: BatchView = {"results": results}
    return json_answer(answer)


def _asked(request: web.Request, text: bytes, now: datetime, number: int) -> Event | Fault:
    """The event that an element asks for, or what is wrong with it."""
    own, most = request[CALLER].tenant, request.app[SETTINGS].max_event_bytes
    try:
        event = requested_event(text, now=now, fresh_id=fresh_id(request, number), default_tenant=own or DEFAULT_TENANT)
        tenant_for(request, event.tenant)
        if len(event.data) > most:
            raise too_large("data", most)
    except (InvalidInput, ApiError) as error:
        fault = fault_of(error)
        assert fault is not None
        return fault
    return replace(event, accepted_ms=int(now.timestamp() * 1000))


def _firsts(asked: Sequence[Event | Fault]) -> dict[_Identity, Event]:
    """The first event of each identity."""
    firsts: dict[_Identity, Event] = {}
    for one in asked:
        if isinstance(one, Event):
            firsts.setdefault(_identity(one), one)
    return firsts


async def _judged(
    request: web.Request, asked: Sequence[Event | Fault], known: Mapping[_Identity, _Outcome]
) -> dict[int, Verdict]:
    """What the catalogue has against those that were not admitted before, by their place."""
    fresh = {n: one for n, one in enumerate(asked) if isinstance(one, Event) and _identity(one) not in known}
    places = list(fresh)
    found = await verdicts(request, list(fresh.values()))
    return {places[number]: verdict for number, verdict in found.items()}


def _identity(event: Event) -> _Identity:
    return event.tenant, event.source, event.external_id


async def _known(request: web.Request, firsts: Mapping[_Identity, Event]) -> dict[_Identity, _Outcome]:
    """The outcomes of those that were admitted before."""
    if not firsts:
        return {}
    async with request.app[STORE].connection() as conn:
        known = await history.known_events(conn, list(firsts), window_s=request.app[SETTINGS].dedupe_window_s)
        times = await history.event_times(conn, [one.event_id for one in known.values()]) if known else {}
    return {
        identity: _Outcome(firsts[identity], known=one, time=times.get(one.event_id)) for identity, one in known.items()
    }


async def _publish(request: web.Request, events: Sequence[Event]) -> Sequence[BrokerError | None]:
    """Publish them; what went wrong with each, if anything."""
    if not events:
        return []
    with publish_span(request) as traceparent:
        outgoing = [
            Outgoing(ToEvents(event.type), event_message(replace(event, traceparent=traceparent))) for event in events
        ]
        timeout_s = request.app[SETTINGS].broker_timeout_s
        return await request.app[BROKER].publish_many(outgoing, timeout_s=timeout_s)


def _result(event: Event, outcome: _Outcome, warned: Sequence[Problem]) -> BatchResultView:
    first, known, external_id = outcome.first, outcome.known, event.external_id
    same = event.digest == first.digest if known is None else known.is_repeated_by(event.digest)
    if not same:
        where = "another event of this batch" if known is None else public_id(EVENT, known.event_id)
        message = f"was already used for {where}, which says something else"
        return _refused("conflict", external_id, conflict(f"id: {message}", [Problem("id", message)]).fault)
    if outcome.error is not None:
        return _refused("not_published", external_id, not_published(outcome.error, external_id).fault)
    if known is not None:
        # Past its retention an event is gone, and its time with it; then the caller's own is all there is.
        told, key = replace(event, time=outcome.time or event.time), known.event_id
    else:
        told, key = first, event_key(first.accepted_ms or 0, *_identity(first))
    duplicate = known is not None or event is not first
    return {
        "result": "duplicate" if duplicate else "accepted",
        "external_id": external_id,
        "event": accepted_view(told, key, duplicate=duplicate, warnings=warned),
        "error": None,
    }


def _refused(
    result: Literal["conflict", "invalid", "not_published"], external_id: str | None, fault: Fault
) -> BatchResultView:
    return {
        "result": result,
        "external_id": external_id,
        "event": None,
        "error": {
            "code": fault.code,
            "message": fault.message,
            "details": problem_views(fault.details),
        },
    }
