"""`/v1/keys`: who may call the API, as whom, to do what, until when and how often.

The key that makes, changes or rotates another is locked in the same transaction and judged as it is then: one that was
revoked a moment before leaves nothing behind.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
from aiohttp import web

from consumer_api.answers import json_answer
from consumer_api.audit import record
from consumer_api.caller import forbidden, unauthorized
from consumer_api.context import CALLER, SETTINGS, STORE
from consumer_api.errors import ErrorCode, conflict, not_found
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.key_inputs import KeyCreate, KeyPatch, KeyRotation, KeysQuery, RequestRate, stored
from consumer_api.key_rights import Rights, beyond
from consumer_api.key_views import KeyView, NewKeyView, RotatedKeyView, key_view
from consumer_api.outcomes import done
from consumer_api.reading import path_id, read_json, read_query
from consumer_api.route import Route
from infra.store import api_keys
from infra.store.api_keys import ApiKeyRow
from schemas.errors import InvalidInput
from schemas.ids import API_KEY, public_id
from schemas.scopes import Scope, covers


def routes() -> list[Route]:
    one, scope, refused = "/v1/keys/{key_id}", Scope.KEYS_ADMIN, (ErrorCode.CONFLICT,)
    return [
        Route(
            method="POST",
            path="/v1/keys",
            handler=create,
            scope=scope,
            body=KeyCreate,
            answers={201: NewKeyView},
            errors=refused,
        ),
        Route(
            method="GET",
            path="/v1/keys",
            handler=list_keys,
            scope=scope,
            query=KeysQuery,
            answers={200: exported(KeyView)},
            errors=LIST_ERRORS,
        ),
        Route(method="GET", path=one, handler=get, scope=scope, answers={200: KeyView}),
        Route(
            method="PATCH",
            path=one,
            handler=patch,
            scope=scope,
            body=KeyPatch,
            answers={200: KeyView},
            errors=refused,
        ),
        Route(
            method="POST",
            path=f"{one}/rotate",
            handler=rotate,
            scope=scope,
            body=KeyRotation,
            body_optional=True,
            answers={201: RotatedKeyView},
            errors=refused,
        ),
        Route(method="POST", path=f"{one}/revoke", handler=revoke, scope=scope, answers={200: KeyView}),
    ]


async def create(request: web.Request) -> web.Response:
    """Make a key. Its text is shown here and never again."""
    wanted, now = await read_json(request, KeyCreate), datetime.now(UTC)
    _check_end(wanted.expires_at, now)
    async with request.app[STORE].transaction() as conn:
        if wanted.tenant is not None and (refused := await api_keys.check_number(conn, wanted.tenant)) is not None:
            raise conflict(refused.reason)
        own, _ = await _lock(request, conn, None)
        given = wanted.model_fields_set
        expires_at = wanted.expires_at if "expires_at" in given or own.tenant is None else own.expires_at
        rate = _per_min(wanted.rate_limit) if "rate_limit" in given or own.tenant is None else own.rate_per_min
        _check_rights(request, own, Rights(stored(wanted.scopes), expires_at, _effective(request, rate)))
        key, row = await api_keys.create(
            conn,
            wanted.name,
            tenant=wanted.tenant,
            scopes=frozenset(stored(wanted.scopes)),
            expires_at=expires_at,
            rate_per_min=rate,
        )
        view = key_view(row, now)
        await _record(request, conn, "created", row, after=view)
    body: NewKeyView = {**view, "key": key}
    return json_answer(body, status=201, headers={"Location": f"/v1/keys/{view['id']}"})


async def list_keys(request: web.Request) -> web.StreamResponse:
    """List keys, the newest first, without what opens anything."""
    query, now = read_query(request, KeysQuery), datetime.now(UTC)
    read = partial(api_keys.list_page, tenant=query.tenant)
    return await list_answer(request, query, read, lambda row: key_view(row, now), KeyView, name="keys")


async def get(request: web.Request) -> web.Response:
    """Get a key, without what opens anything."""
    async with request.app[STORE].connection() as conn:
        row = await api_keys.get(conn, _id(request))
    if row is None:
        raise not_found("key")
    return json_answer(key_view(row, datetime.now(UTC)))


async def patch(request: web.Request) -> web.Response:
    """Change a key. What is given is in force for its next request. A key that has ended stays so."""
    key_id, now = _id(request), datetime.now(UTC)
    wanted = await read_json(request, KeyPatch)
    for field in ("name", "scopes"):
        if field in wanted.model_fields_set and getattr(wanted, field) is None:
            raise InvalidInput.of(field, "must not be null")
    _check_end(wanted.expires_at, now)
    async with request.app[STORE].transaction() as conn:
        own, row = await _lock(request, conn, key_id)
        _check_live(row, now, "changed")
        changed, before = _patched(row, wanted), key_view(row, now)
        _check_rights(request, own, _gained(request, own, row, changed))
        view = key_view(await api_keys.save(conn, changed), now)
        if changed != row:
            await _record(request, conn, "updated", row, before=before, after=view)
    return json_answer(view)


async def rotate(request: web.Request) -> web.Response:
    """Rotate a key: a new one of the same rights and the same end, its text shown here and never again.

    The old one goes on for the overlap, so that callers can change over.
    """
    key_id, now = _id(request), datetime.now(UTC)
    wanted = await read_json(request, KeyRotation, optional=True)
    async with request.app[STORE].transaction() as conn:
        await _check_room(request, conn, key_id)
        own, row = await _lock(request, conn, key_id)
        _check_live(row, now, "rotated")
        if row.replaced_by is not None:
            raise conflict(f"the key was rotated already; rotate {public_id(API_KEY, row.replaced_by)}")
        if own.id != row.id:
            _check_rights(request, own, Rights(row.scopes, row.expires_at, _effective(request, row.rate_per_min)))
        key, new, old = await api_keys.rotate(conn, row, overlap_s=wanted.overlap_s)
        view, replaced = key_view(new, now), key_view(old, datetime.now(UTC))
        await _record(request, conn, "rotated", row, before=key_view(row, now), after=replaced)
        await _record(request, conn, "created", new, after=view)
    body: RotatedKeyView = {**view, "key": key, "replaces": replaced}
    return json_answer(body, status=201, headers={"Location": f"/v1/keys/{view['id']}"})


async def revoke(request: web.Request) -> web.Response:
    """End a key: the next request that comes with it is 401. It may be repeated; the first time stays."""
    key_id, now = _id(request), datetime.now(UTC)
    async with request.app[STORE].transaction() as conn:
        _, row = await _lock(request, conn, key_id)
        revoked = await api_keys.revoke(conn, key_id)
        if revoked is not None:
            await _record(request, conn, "revoked", row, before=key_view(row, now), after=key_view(revoked, now))
    return json_answer(key_view(revoked or row, now))


async def _lock(request: web.Request, conn: asyncpg.Connection, key_id: UUID | None) -> tuple[ApiKeyRow, ApiKeyRow]:
    """The caller's own key and the one it asks for, or its own twice, both kept from being changed meanwhile.

    Raises 401 when the caller's has ended by now, 403 when it may no longer do this, 404 when there is no other.
    """
    caller = request[CALLER]
    wanted = caller.key_id if key_id is None else key_id
    rows = await api_keys.lock(conn, {caller.key_id, wanted})
    own = rows.get(caller.key_id)
    if own is None or own.has_ended(datetime.now(UTC)):
        raise unauthorized("the key is unknown, was revoked or has expired")
    if Scope.KEYS_ADMIN not in own.known_scopes:
        raise forbidden(f"the key has not the scope {Scope.KEYS_ADMIN}")
    if (row := rows.get(wanted)) is None:
        raise not_found("key")
    return own, row


async def _check_room(request: web.Request, conn: asyncpg.Connection, key_id: UUID) -> None:
    """For one key more of the tenant that this key is of. It is asked before any row is locked."""
    row = await api_keys.get(conn, key_id)
    if row is not None and row.tenant is not None:
        done(await api_keys.check_number(conn, row.tenant), "key")


def _patched(row: ApiKeyRow, wanted: KeyPatch) -> ApiKeyRow:
    changes: dict[str, Any] = wanted.model_dump(include=wanted.model_fields_set & {"name", "expires_at"})
    if wanted.scopes is not None:
        changes["scopes"] = stored(wanted.scopes)
    if "rate_limit" in wanted.model_fields_set:
        changes["rate_per_min"] = _per_min(wanted.rate_limit)
    return replace(row, **changes)


def _gained(request: web.Request, own: ApiKeyRow, before: ApiKeyRow, after: ApiKeyRow) -> Rights:
    """What a key gets by a change; where it gets nothing, what anybody may give. Less may always be given."""
    had, has = frozenset(before.scopes), frozenset(after.scopes)
    sooner = after.expires_at is not None and (before.expires_at is None or after.expires_at <= before.expires_at)
    kept = after.expires_at == before.expires_at
    rate = _effective(request, after.rate_per_min)
    return Rights(
        scopes=frozenset() if covers(had, has) else has - had,
        expires_at=own.expires_at if sooner or kept else after.expires_at,
        rate_per_min=0 if rate <= _effective(request, before.rate_per_min) else rate,
    )


def _check_rights(request: web.Request, own: ApiKeyRow, wanted: Rights) -> None:
    """Raises 403 when a tenant's key would hand on more than it has."""
    if own.tenant is None:
        return
    if reason := beyond(Rights(own.scopes, own.expires_at, _effective(request, own.rate_per_min)), wanted):
        raise forbidden(reason)


def _check_live(row: ApiKeyRow, now: datetime, what: str) -> None:
    if row.has_ended(now):
        raise conflict(f"the key has ended, and cannot be {what}; make a new one")


def _check_end(expires_at: datetime | None, now: datetime) -> None:
    if expires_at is not None and expires_at <= now:
        raise InvalidInput.of("expires_at", "must be in the future")


def _effective(request: web.Request, rate_per_min: int | None) -> int:
    return request.app[SETTINGS].key_requests_per_min if rate_per_min is None else rate_per_min


def _per_min(rate: RequestRate | None) -> int | None:
    return None if rate is None else rate.requests_per_min


async def _record(
    request: web.Request,
    conn: asyncpg.Connection,
    what: str,
    row: ApiKeyRow,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    target = public_id(API_KEY, row.id)
    await record(request, conn, f"key.{what}", target, tenant=row.tenant, before=before, after=after)


def _id(request: web.Request) -> UUID:
    return path_id(request, API_KEY, "key_id")
