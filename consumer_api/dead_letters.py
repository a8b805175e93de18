"""`/v1/dead-letters`: what was given up on, with its original bytes, to be replayed or discarded."""

from datetime import UTC, datetime
from functools import partial
from typing import Final
from uuid import UUID

import asyncpg
from aiohttp import web
from msgspec.structs import replace
from uuid_utils.compat import uuid7

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.commands import Discard
from consumer_api.context import BROKER, SETTINGS, STORE
from consumer_api.errors import ErrorCode, conflict, expunged, not_found
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.outcomes import done
from consumer_api.presentation import dead_letter_view, dead_letter_with_body_view
from consumer_api.queries import DeadLettersQuery
from consumer_api.reading import path_id, read_json, read_query
from consumer_api.route import Media, Route
from consumer_api.views import DeadLetterView, DeadLetterWithBodyView
from infra.broker.base import Outgoing, ToEvents
from infra.store import dead_letters, history
from infra.store.dead_letters import DeadLetter, DeadLetterRow
from infra.store.expunging import EXPUNGED
from schemas.deliveries import DeadLetterKind
from schemas.events import ACCEPTED_MS_HEADER, ID_HEADER, Event, Unreadable, read_event
from schemas.fields import type_fault
from schemas.ids import DEAD_LETTER, event_key, public_id
from schemas.messages import Message
from schemas.scopes import Scope

BYTES: Final = "application/octet-stream"
_OUR_HEADERS: Final = "hookhare-"


def routes() -> list[Route]:
    one = "/v1/dead-letters/{dead_letter_id}"
    read, write = Scope.DEAD_LETTERS_READ, Scope.DEAD_LETTERS_WRITE
    return [
        Route(
            method="GET",
            path="/v1/dead-letters",
            handler=list_dead_letters,
            scope=read,
            query=DeadLettersQuery,
            answers={200: exported(DeadLetterView)},
            errors=LIST_ERRORS,
        ),
        Route(method="GET", path=one, handler=get, scope=read, answers={200: DeadLetterWithBodyView}),
        Route(
            method="GET",
            path=f"{one}/body",
            handler=get_body,
            scope=read,
            answers={200: Media({BYTES: bytes})},
        ),
        Route(
            method="POST",
            path=f"{one}/replay",
            handler=replay,
            scope=Scope.REPLAYS_WRITE,
            answers={202: DeadLetterView},
            errors=(
                *(ErrorCode.CONFLICT, ErrorCode.EXPUNGED),
                *(ErrorCode.BROKER_UNAVAILABLE, ErrorCode.BROKER_REFUSED),
            ),
        ),
        Route(
            method="POST",
            path=f"{one}/discard",
            handler=discard,
            scope=write,
            body=Discard,
            body_optional=True,
            answers={200: DeadLetterView},
            errors=(ErrorCode.CONFLICT,),
        ),
    ]


async def list_dead_letters(request: web.Request) -> web.StreamResponse:
    """List dead letters, the newest first."""
    query = read_query(request, DeadLettersQuery)
    read = partial(dead_letters.list_page, wanted=query.wanted())
    return await list_answer(request, query, read, dead_letter_view, DeadLetterView, name="dead-letters")


async def get(request: web.Request) -> web.Response:
    """Get a dead letter, with the original bytes of a message."""
    async with request.app[STORE].connection() as conn:
        letter = done(await dead_letters.get(conn, _id(request)), "dead letter")
    return json_answer(dead_letter_with_body_view(letter))


async def get_body(request: web.Request) -> web.Response:
    """Download the original bytes, as they came: of a delivery, its event's data. 404 where there are none any more."""
    dead_letter_id = _id(request)
    async with request.app[STORE].connection() as conn:
        letter = done(await dead_letters.get(conn, dead_letter_id), "dead letter")
    if letter.body is None:
        raise not_found("body: the dead letter has none any more")
    # And nosniff, as on every answer: whatever it is, no browser is to take it for a page of ours.
    headers = {"Content-Disposition": f'attachment; filename="{public_id(DEAD_LETTER, dead_letter_id)}.bin"'}
    return web.Response(body=letter.body, content_type=BYTES, headers=headers)


async def replay(request: web.Request) -> web.Response:
    """Replay a dead letter. A delivery begins again; a message is published again as it came, confirmed."""
    dead_letter_id = _id(request)
    async with request.app[STORE].transaction() as conn:
        letter = done(await dead_letters.get(conn, dead_letter_id), "dead letter")
        if letter.row.kind == DeadLetterKind.DELIVERY:
            row = done(await dead_letters.replay_delivery(conn, letter.row), "delivery")
        else:
            # Within the transaction, so that two who replay it at once do not publish it twice. It is marked after the
            # confirm: if this dies in between, it stays open, and no message is lost.
            locked = done(await dead_letters.lock_message(conn, dead_letter_id), "dead letter")
            event_id = await _publish(request, conn, locked)
            row = await dead_letters.mark_replayed(conn, dead_letter_id, event_id)
        await _record(request, conn, "dead_letter.replayed", letter.row, row)
    return json_answer(dead_letter_view(row), status=202)


async def discard(request: web.Request) -> web.Response:
    """Discard a dead letter: it is settled without a replay. A reason that is given is kept with it and shown."""
    dead_letter_id = _id(request)
    asked = await read_json(request, Discard, optional=True)
    async with request.app[STORE].transaction() as conn:
        letter = done(await dead_letters.get(conn, dead_letter_id), "dead letter")
        row: DeadLetterRow = done(await dead_letters.discard(conn, dead_letter_id, asked.reason), "dead letter")
        await _record(request, conn, "dead_letter.discarded", letter.row, row)
    return json_answer(dead_letter_view(row))


async def _publish(request: web.Request, conn: asyncpg.Connection, letter: DeadLetter) -> UUID | None:
    """Publish the message again; the key of the event that it is then, if it is one.

    The letter keeps that key: who expunges the event expunges the letter's bytes too.
    """
    if letter.body is None and letter.row.event_id is not None:
        raise expunged(EXPUNGED)
    if letter.body is None or letter.properties is None:
        raise conflict("its message was not kept")
    settings, now = request.app[SETTINGS], datetime.now(UTC)
    stored = dead_letters.unpack_message(letter.body, letter.properties)
    # Under the message_id that it came with first: the broker gives it another one each time.
    came = replace(stored, message_id=letter.row.message_id or stored.message_id)
    event = read_event(came, now=now, fresh_id=str(uuid7()), max_bytes=settings.max_event_bytes)
    message, key = _without_our_headers(stored), None
    if isinstance(event, Event):
        accepted_ms = int(now.timestamp() * 1000)
        ours = {ACCEPTED_MS_HEADER: accepted_ms, ID_HEADER: event.external_id}
        message = replace(message, headers={**message.headers, **ours})
        identity = event.tenant, event.source, event.external_id
        known = await history.known_event(conn, *identity, window_s=settings.dedupe_window_s)
        key = event_key(accepted_ms, *identity) if known is None else known.event_id
    to = ToEvents(routing_key(event, letter.row))
    await request.app[BROKER].publish(Outgoing(to, message), timeout_s=settings.broker_timeout_s)
    return key


def routing_key(event: Event | Unreadable, row: DeadLetterRow) -> str:
    """The event's type; for what cannot be read, the key it came with, or its kind: the queue takes any."""
    if isinstance(event, Event):
        return event.type
    stored = row.routing_key or ""
    return row.kind if type_fault(stored) else stored


def _without_our_headers(message: Message) -> Message:
    """It is accepted anew now, under a new key: the day of the old one may be past its retention."""
    theirs = {name: value for name, value in message.headers.items() if not name.startswith(_OUR_HEADERS)}
    return replace(message, headers=theirs)


async def _record(
    request: web.Request, conn: asyncpg.Connection, action: str, before: DeadLetterRow, after: DeadLetterRow
) -> None:
    await audit.record(
        request,
        conn,
        action,
        public_id(DEAD_LETTER, after.id),
        tenant=after.tenant,
        before=dead_letter_view(before),
        after=dead_letter_view(after),
    )


def _id(request: web.Request) -> UUID:
    return path_id(request, DEAD_LETTER, "dead_letter_id")
