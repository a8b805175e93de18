"""Who calls: a key, its tenant and its scopes; and what that lets it see.

Guarantees: a key of a tenant is shown nothing of another tenant, and cannot tell what is another's from what is not
there. For an id in a path that is decided here, before the handler, for every route; for lists and bodies the field
`tenant` is set to the caller's (`reading.py`), and an id in a body is asked for by `check_owned`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg
from aiohttp import web

from consumer_api.context import CALLER
from consumer_api.errors import ApiError, ErrorCode, Fault, not_found
from infra.store.owners import Owned, tenant_of
from schemas.errors import InvalidInput
from schemas.ids import API_KEY, ATTEMPT, AUDIT_ENTRY, DEAD_LETTER, DELIVERY, EVENT, REPLAY, SUBSCRIPTION, parse_id
from schemas.scopes import Scope


@dataclass(frozen=True, slots=True)
class _Kind:
    prefix: str
    owned: Owned
    name: str


# By the name of the parameter in the path.
_KINDS: Final[Mapping[str, _Kind]] = {
    "subscription_id": _Kind(SUBSCRIPTION, Owned.SUBSCRIPTION, "subscription"),
    "event_id": _Kind(EVENT, Owned.EVENT, "event"),
    "delivery_id": _Kind(DELIVERY, Owned.DELIVERY, "delivery"),
    "attempt_id": _Kind(ATTEMPT, Owned.ATTEMPT, "attempt"),
    "dead_letter_id": _Kind(DEAD_LETTER, Owned.DEAD_LETTER, "dead letter"),
    "replay_id": _Kind(REPLAY, Owned.REPLAY, "replay"),
    "key_id": _Kind(API_KEY, Owned.API_KEY, "key"),
    "audit_entry_id": _Kind(AUDIT_ENTRY, Owned.AUDIT_ENTRY, "audit entry"),
}


def id_prefix(parameter: str) -> str | None:
    """The prefix of the ids that a parameter of paths takes; None for one that takes something else."""
    kind = _KINDS.get(parameter)
    return None if kind is None else kind.prefix


def forbidden(message: str) -> ApiError:
    return ApiError(Fault(403, ErrorCode.FORBIDDEN, message))


def unauthorized(message: str) -> ApiError:
    return ApiError(Fault(401, ErrorCode.UNAUTHORIZED, message, headers={"WWW-Authenticate": "Bearer"}))


def check_scope(request: web.Request, scope: Scope, *, admin: bool) -> None:
    """Raises 403 where the caller's key has not the scope, or is a tenant's and the route is not for tenants."""
    caller = request[CALLER]
    if scope not in caller.scopes:
        raise forbidden(f"the key has not the scope {scope}")
    if admin and caller.tenant is not None:
        raise forbidden("only an admin key may do this; this one is of a tenant")


async def check_path(request: web.Request, conn: asyncpg.Connection) -> None:
    """Raises 404, as for what is not there, where an id in the path is not of the caller's tenant."""
    if request[CALLER].tenant is None:
        return
    for parameter, text in request.match_info.items():
        kind = _KINDS.get(parameter)
        if kind is None:
            continue
        try:
            key = parse_id(kind.prefix, text, field=parameter)
        except InvalidInput:
            continue  # the handler says so; there is nothing to hide in an id that cannot be one
        await check_owned(request, conn, kind.owned, key)


async def check_owned(request: web.Request, conn: asyncpg.Connection, owned: Owned, key: UUID) -> None:
    """Raises 404 where this is another tenant's, or nobody's."""
    tenant = request[CALLER].tenant
    if tenant is not None and await tenant_of(conn, owned, key) != tenant:
        name = next(kind.name for kind in _KINDS.values() if kind.owned is owned)
        raise not_found(name)
