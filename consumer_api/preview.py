"""`POST /v1/subscriptions/preview`: which subscriptions an event would match, why one would not, and what it is sent.

By the dispatcher's own functions: `core.topics` and `core.filter` match, `core.recipe` and `core.request` compose.
Nothing is published, stored or sent. What signs the request is not shown: who may look at subscriptions could else have
anything signed.
"""

import asyncio
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from pydantic import JsonValue
from typing_extensions import TypedDict
from uuid_utils.compat import uuid7

from consumer_api.answers import json_answer
from consumer_api.caller import check_owned
from consumer_api.context import SETTINGS, STORE, VAULT
from consumer_api.cursors import encode_cursor
from consumer_api.errors import ErrorCode
from consumer_api.event_checks import looked_at
from consumer_api.events import read_requested
from consumer_api.outcomes import done
from consumer_api.presentation import problem_views
from consumer_api.publishing import EventCreate
from consumer_api.queries import PreviewQuery
from consumer_api.reading import read_query
from consumer_api.route import Route
from consumer_api.views import ErrorDetail
from dispatcher.core.credentials import AUTHORIZATION
from dispatcher.core.filter import Facts, Filter
from dispatcher.core.recipe import recipe_of
from dispatcher.core.request import Composed, compose, content_of
from dispatcher.core.topics import matches
from infra.crypto import Vault
from infra.egress_rules import EgressRules
from infra.request_head import read_target
from infra.settings import Settings
from infra.store import subscriptions
from infra.store.owners import Owned
from infra.store.subscriptions import MatchableRow, SubscriptionRow
from schemas.destination_auth import Auth, OAuth2Auth, auth_header, read_auth
from schemas.errors import InvalidInput, SecretUnreadable
from schemas.events import Event
from schemas.filters import read_filter
from schemas.formats import Format, HmacSignature, read_signature
from schemas.ids import EVENT, SUBSCRIPTION, event_key, public_id
from schemas.scopes import Scope
from schemas.signatures import SIGNATURE_HEADER
from schemas.subscription_headers import REDACTED, decode_headers
from schemas.subscriptions import State, decode_secrets

LOOKED_AT: Final = 1000  # subscriptions in one answer; its cursor leads on
_AT_ONCE: Final = 50  # before other requests may run


class Match(TypedDict):
    """A subscription that would get the event; a paused one once it is resumed."""

    subscription_id: str
    url: str
    event_types: list[str]
    filter: dict[str, JsonValue] | None
    state: str


class ConditionTold(TypedDict):
    """One condition of a filter, by its place in it; `holds` is null where it cannot be evaluated."""

    where: str
    holds: bool | None


class PreviewedRequest(TypedDict):
    """The request as it would begin now. What is secret in its headers is redacted, its signatures too."""

    method: str
    url: str
    headers: list[list[str]]
    body: str


class Explained(TypedDict):
    """Whether one subscription would get the event, and why not. `request` is null where none can be composed."""

    subscription_id: str
    matches: bool
    reasons: list[str]
    conditions: list[ConditionTold]
    request: PreviewedRequest | None
    request_fault: str | None


class Preview(TypedDict):
    """Of the subscriptions that were looked at, those that match, newest first; `next_cursor` leads to the others.

    `problems` is what publishing the event would be refused for, or warned of.
    """

    data: list[Match]
    has_more: bool
    next_cursor: str | None
    subscription: Explained | None
    problems: list[ErrorDetail]


def routes() -> list[Route]:
    return [
        Route(
            method="POST",
            path="/v1/subscriptions/preview",
            handler=preview,
            scope=Scope.SUBSCRIPTIONS_READ,
            query=PreviewQuery,
            body=EventCreate,
            answers={200: Preview},
            errors=(ErrorCode.NOT_FOUND, ErrorCode.PAYLOAD_TOO_LARGE),
        )
    ]


async def preview(request: web.Request) -> web.Response:
    """Preview an event: which subscriptions it would match, published now, and the request that it would become."""
    query = read_query(request, PreviewQuery)
    now = datetime.now(UTC)
    event = await read_requested(request, now=now, fresh_id=str(uuid7()))
    verdict = (await looked_at(request, [event])).get(0)
    row: SubscriptionRow | None = None
    async with request.app[STORE].connection() as conn:
        if query.subscription_id is not None:
            await check_owned(request, conn, Owned.SUBSCRIPTION, query.subscription_id)
            row = done(await subscriptions.get(conn, query.subscription_id), "subscription")
        page = await subscriptions.list_matchable(conn, event.tenant, after=query.cursor, limit=LOOKED_AT)
    facts = Facts(event.tenant, content_of(event))
    found: list[Match] = []
    for number, one in enumerate(page.rows):
        if number % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
        if _wants_type(one.event_types, event.type) and _filter(one.filter).matches(facts):
            found.append(_match(one))
    answer = Preview(
        data=found,
        has_more=page.next_after is not None,
        next_cursor=None if page.next_after is None else encode_cursor(page.next_after),
        subscription=None if row is None else _explained(request, row, event, facts, now),
        problems=[] if verdict is None else problem_views([verdict.problem]),
    )
    return json_answer(answer)


def _match(row: MatchableRow) -> Match:
    return Match(
        subscription_id=public_id(SUBSCRIPTION, row.id),
        url=row.url,
        event_types=row.event_types,
        filter=row.filter,
        state=row.state,
    )


def _wants_type(patterns: list[str], event_type: str) -> bool:
    return any(matches(pattern, event_type) for pattern in patterns)


def _filter(stored: dict[str, Any] | None) -> Filter:
    """Closed, as the dispatcher's, where it cannot be read."""
    if stored is None:
        return _EVERY
    try:
        return Filter(read_filter(stored))
    except InvalidInput:
        return Filter(None)


_EVERY: Final = Filter(read_filter({"type": {"$exists": True}}))


def _explained(request: web.Request, row: SubscriptionRow, event: Event, facts: Facts, now: datetime) -> Explained:
    reasons = []
    if row.tenant != event.tenant:
        reasons.append(f"it is of the tenant {row.tenant}, the event of {event.tenant}")
    if row.state == State.DISABLED:
        reasons.append("it is disabled")
    if not _wants_type(row.event_types, event.type):
        reasons.append(f"none of its event_types matches {event.type}")
    wanted = _filter(row.filter)
    if not wanted.matches(facts):
        reasons.append("its filter does not let the event through")
    told = [] if row.filter is None else wanted.explain(facts)
    composed = _request(request.app[VAULT], request.app[SETTINGS], row, event, now)
    return Explained(
        subscription_id=public_id(SUBSCRIPTION, row.id),
        matches=not reasons,
        reasons=reasons,
        conditions=[ConditionTold(where=one.where, holds=one.holds) for one in told],
        request=None if isinstance(composed, str) else composed,
        request_fault=composed if isinstance(composed, str) else None,
    )


def _request(
    vault: Vault, settings: Settings, row: SubscriptionRow, event: Event, now: datetime
) -> PreviewedRequest | str:
    """What would be sent, or why that cannot be said."""
    signature = read_signature(row.signature)
    try:
        headers = {} if row.headers is None else decode_headers(vault.decrypt(row.headers))
        auth = None if row.auth is None else read_auth(vault.decrypt(row.auth))
        secrets = decode_secrets(vault.decrypt(row.secrets))
    except SecretUnreadable:
        return "its secrets cannot be decrypted with the configured keys; what is for it waits"
    recipe = recipe_of(
        secrets=secrets,
        signature=signature,
        format=Format(row.format),
        headers=headers,
        auth=auth,
        origin=settings.webhook_origin if row.handshake else None,
    )
    composed = compose(recipe, content_of(event), webhook_id=public_id(EVENT, _key(event, now)), now=now)
    hidden = {name for name, one in headers.items() if one.secret} | _of_auth(auth)
    hidden.add(signature.header if isinstance(signature, HmacSignature) else SIGNATURE_HEADER)
    return _shown(composed, row.url, hidden, auth, settings)


def _shown(
    composed: Composed, url: str, hidden: set[str], auth: Auth | None, settings: Settings
) -> PreviewedRequest | str:
    """The request as the way out writes its head, once what is secret is gone from it."""
    headers = dict(composed.headers)
    if isinstance(auth, OAuth2Auth):
        headers[AUTHORIZATION] = ""  # of the token that the dispatcher has then
    lower = {name.lower() for name in hidden}
    headers = {name: REDACTED if name.lower() in lower else value for name, value in headers.items()}
    target = read_target(EgressRules.from_settings(settings), url)
    if isinstance(target, str):
        return f"it would not be sent: {target}"
    head = target.head(headers, len(composed.body), composed.content_type).decode("ascii")
    lines = head.removesuffix("\r\n\r\n").split("\r\n")[1:]
    return PreviewedRequest(
        method="POST",
        url=url,
        headers=[[name, value] for name, _, value in (line.partition(": ") for line in lines)],
        body=composed.body.decode(),
    )


def _of_auth(auth: Auth | None) -> set[str]:
    return set() if auth is None else {auth_header(auth)}


def _key(event: Event, now: datetime) -> UUID:
    """As it would be if it were published now."""
    return event_key(int(now.timestamp() * 1000), event.tenant, event.source, event.external_id)
