"""`/v1/subscriptions`: who is sent what, where, and signed with which secret."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from aiohttp import web
from uuid_utils.compat import uuid7

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.changing import locked, record, shown, subscription_key, tagged
from consumer_api.commands import Recovery
from consumer_api.context import EARLY_CHECK, SETTINGS, STORE, VAULT
from consumer_api.destinations import check_certificates, check_kept, check_together
from consumer_api.errors import ErrorCode, conflict
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.idempotency import keep
from consumer_api.outcomes import done
from consumer_api.presentation import replay_view
from consumer_api.queries import SubscriptionsQuery
from consumer_api.reading import read_json, read_query
from consumer_api.route import Route
from consumer_api.sealing import live_secrets, opened, seal_auth, seal_headers, seal_secrets, seal_tls
from consumer_api.searching import searching
from consumer_api.signing import check_number, first_secrets, missing
from consumer_api.subscription_views import SubscriptionView
from consumer_api.views import ReplayView
from infra.early_check import EarlyCheck
from infra.store import replays, subscriptions
from infra.store.subscriptions import SubscriptionRow
from schemas.destination_auth import OAuth2Auth
from schemas.errors import InvalidInput, SecretUnreadable
from schemas.formats import Format, Signature, read_signature, write_signature
from schemas.ids import SUBSCRIPTION, public_id
from schemas.scopes import Scope
from schemas.subscriptions import (
    RateLimitInput,
    Secret,
    State,
    SubscriptionCreate,
    SubscriptionPatch,
    write_policy,
)

_CONFLICT: Final = (ErrorCode.CONFLICT,)


def routes() -> list[Route]:
    one = "/v1/subscriptions/{subscription_id}"
    read, write = Scope.SUBSCRIPTIONS_READ, Scope.SUBSCRIPTIONS_WRITE
    return [
        Route(
            method="POST",
            path="/v1/subscriptions",
            idempotent=True,
            handler=create,
            scope=write,
            body=SubscriptionCreate,
            answers={201: SubscriptionView},
        ),
        Route(
            method="GET",
            path="/v1/subscriptions",
            handler=list_subscriptions,
            scope=read,
            query=SubscriptionsQuery,
            answers={200: exported(SubscriptionView)},
            errors=LIST_ERRORS,
        ),
        Route(method="GET", path=one, handler=get, scope=read, answers={200: SubscriptionView}),
        Route(
            method="PATCH",
            path=one,
            handler=patch,
            scope=write,
            body=SubscriptionPatch,
            answers={200: SubscriptionView},
            errors=(ErrorCode.CONFLICT, ErrorCode.PRECONDITION_FAILED),
        ),
        Route(
            method="DELETE",
            path=one,
            handler=delete,
            scope=write,
            answers={204: None},
            errors=(ErrorCode.PRECONDITION_FAILED,),
        ),
        Route(
            method="POST",
            path=f"{one}/recover",
            idempotent=True,
            handler=recover,
            scope=Scope.REPLAYS_WRITE,
            body=Recovery,
            answers={202: ReplayView},
            errors=(*_CONFLICT, ErrorCode.QUERY_TOO_BROAD),
        ),
    ]


async def create(request: web.Request) -> web.Response:
    """Create a subscription. Its secrets are shown here and never again; events published from now on reach it."""
    wanted = await read_json(request, SubscriptionCreate)
    vault = request.app[VAULT]
    await _check(wanted, request.app[EARLY_CHECK])
    secrets = first_secrets(wanted.signature, wanted.secret)
    check_together(
        url=wanted.url,
        format=wanted.format,
        signature=wanted.signature,
        handshake=wanted.handshake,
        header_names=tuple(wanted.headers),
        auth=wanted.auth,
        tls=wanted.tls,
    )
    async with request.app[STORE].transaction() as conn:
        row = await subscriptions.create(
            conn,
            subscription_id=uuid7(),
            tenant=wanted.tenant,
            url=wanted.url,
            description=wanted.description,
            event_types=list(wanted.event_types),
            filter=wanted.filter,
            timeout_s=wanted.timeout_s,
            retry_policy=write_policy(wanted.retry_policy),
            headers=seal_headers(vault, wanted.headers),
            secrets=seal_secrets(vault, secrets),
            ordered=wanted.ordered,
            format=wanted.format,
            signature=write_signature(wanted.signature),
            handshake=wanted.handshake,
            auth=seal_auth(vault, wanted.auth),
            tls=seal_tls(vault, wanted.tls),
            **_rate(wanted.rate_limit),
        )
        await record(request, conn, "created", None, row)
        view = shown(request, row, new=secrets)
        location = {"Location": f"/v1/subscriptions/{view['id']}"}
        return await keep(request, conn, json_answer(view, status=201, headers=location | tagged(row)))


async def list_subscriptions(request: web.Request) -> web.StreamResponse:
    """List subscriptions, the newest first."""
    query = read_query(request, SubscriptionsQuery)
    read = partial(subscriptions.list_page, tenant=query.tenant, state=query.state, health=query.health)
    return await list_answer(request, query, read, partial(shown, request), SubscriptionView, name="subscriptions")


async def get(request: web.Request) -> web.Response:
    """Get a subscription, without what is secret."""
    async with request.app[STORE].connection() as conn:
        row = done(await subscriptions.get(conn, subscription_key(request)), "subscription")
    return json_answer(shown(request, row), headers=tagged(row))


async def patch(request: web.Request) -> web.Response:
    """Change a subscription. What is given is in force once this answers, also for retries that wait, and replaces all
    that there was: of `headers`, `auth` and `tls` nothing is kept.

    The secrets that a changed signature needs are made, and shown here and never again.
    """
    wanted = await read_json(request, SubscriptionPatch)
    await _check(wanted, request.app[EARLY_CHECK])
    async with request.app[STORE].transaction() as conn:
        before = await locked(request, conn)
        check_kept(
            before.url,
            wanted,
            opened(request.app[VAULT], before, datetime.now(UTC)),
            sealed=[name for name in ("headers", "auth", "tls") if getattr(before, name) is not None],
        )
        row, new = _signable(request, _patched(request, before, wanted), wanted.signature)
        # Of a row that cannot be decrypted nothing is sent; what is given is checked by itself.
        known = opened(request.app[VAULT], row, datetime.now(UTC)) or wanted
        check_together(
            url=row.url,
            format=Format(row.format),
            signature=read_signature(row.signature),
            handshake=row.handshake,
            header_names=tuple(known.headers or ()),
            auth=known.auth,
            tls=known.tls,
        )
        row = await subscriptions.save(conn, row)
        await record(request, conn, "updated", before, row)
    return json_answer(shown(request, row, new=new), headers=tagged(row))


async def delete(request: web.Request) -> web.Response:
    """Delete a subscription. Its deliveries that have not ended are canceled; its history stays."""
    no_secrets = seal_secrets(request.app[VAULT], [])
    async with request.app[STORE].transaction() as conn:
        before = await locked(request, conn)
        await subscriptions.delete(conn, before.id, no_secrets=no_secrets)
        await record(request, conn, "deleted", before, None)
    return web.Response(status=204)


async def recover(request: web.Request) -> web.Response:
    """Send again what died since a time, be it of an event that came before that. The answer is the replay."""
    subscription_id = subscription_key(request)
    wanted = await read_json(request, Recovery)
    now, settings = datetime.now(UTC), request.app[SETTINGS]
    dead = wanted.wanted(subscription_id, now=now, retention=timedelta(days=settings.retention_days))
    max_per_s = wanted.max_per_s or settings.replay_max_per_s
    async with searching(request, narrow_by="since and until") as conn:
        row = done(await subscriptions.get(conn, subscription_id), "subscription")
        if row.state != State.ENABLED:
            raise conflict(f"the subscription is {row.state}; only an enabled one can recover what failed")
        done(await replays.check_number(conn, row.tenant), "replay")
        dead = replace(dead, tenant=row.tenant)
        replay = await replays.create(conn, replay_id=uuid7(), wanted=dead, max_per_s=max_per_s, now=now)
        view, target = replay_view(replay), public_id(SUBSCRIPTION, subscription_id)
        await audit.record(request, conn, "subscription.recovered", target, tenant=row.tenant, after=view)
        location = {"Location": f"/v1/replays/{view['id']}"}
        return await keep(request, conn, json_answer(view, status=202, headers=location))


def _patched(request: web.Request, row: SubscriptionRow, wanted: SubscriptionPatch) -> SubscriptionRow:
    changes = wanted.changes()
    if wanted.event_types is not None:
        changes["event_types"] = list(wanted.event_types)
    if wanted.retry_policy is not None:
        changes["retry_policy"] = write_policy(wanted.retry_policy)
    if "rate_limit" in changes:
        del changes["rate_limit"]
        changes |= _rate(wanted.rate_limit)
    if wanted.signature is not None:
        changes["signature"] = write_signature(wanted.signature)
    if wanted.headers is not None:
        changes["headers"] = seal_headers(request.app[VAULT], wanted.headers)
    if "auth" in changes:
        changes["auth"] = seal_auth(request.app[VAULT], wanted.auth)
    if "tls" in changes:
        changes["tls"] = seal_tls(request.app[VAULT], wanted.tls)
    if wanted.state is not None and wanted.state != row.state:
        changes["state_reason"] = subscriptions.STATE_REASONS[wanted.state]
    values: dict[str, Any] = changes
    return replace(row, **values)


def _signable(
    request: web.Request, row: SubscriptionRow, signature: Signature | None
) -> tuple[SubscriptionRow, Sequence[Secret]]:
    """The row with the secrets that a new signature needs, and those that had to be made for it."""
    if signature is None:
        return row, ()
    vault = request.app[VAULT]
    try:
        known = live_secrets(vault, row, datetime.now(UTC))
    except SecretUnreadable:
        raise conflict("its secrets cannot be decrypted; rotate them first, which replaces them") from None
    new = missing(signature, known)
    check_number([*new, *known], signature)
    return replace(row, secrets=seal_secrets(vault, [*new, *known])), new


def _rate(limit: RateLimitInput | None) -> dict[str, Any]:
    """The columns of a rate limit."""
    if limit is None:
        return {"rate_per_s": None, "rate_burst": None}
    return {"rate_per_s": limit.requests_per_s, "rate_burst": limit.burst}


async def _check(wanted: SubscriptionCreate | SubscriptionPatch, early_check: EarlyCheck) -> None:
    """Raises InvalidInput for what is given and cannot be right, whatever the rest of the subscription is."""
    urls = {"url": wanted.url}
    if isinstance(wanted.auth, OAuth2Auth):
        urls["auth.token_url"] = wanted.auth.token_url
    for field, url in urls.items():
        if url is not None and (refusal := await early_check.refusal(url)) is not None:
            raise InvalidInput.of(field, refusal)
    await check_certificates(wanted.tls)
