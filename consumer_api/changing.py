"""Changing a subscription: whose version the caller has seen (`If-Match`), and what is recorded of it.

The entity tag of a subscription stands for its configuration: it moves with every change of that, and not with what its
endpoint does. So it is none to cache by, and `If-None-Match` is not looked at.
"""

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import asyncpg
from aiohttp import hdrs, web

from consumer_api import audit
from consumer_api.context import VAULT
from consumer_api.errors import ApiError, ErrorCode, Fault
from consumer_api.outcomes import done
from consumer_api.presentation import subscription_view
from consumer_api.reading import path_id
from consumer_api.sealing import opened
from consumer_api.subscription_views import SubscriptionView
from infra.store import subscriptions
from infra.store.subscriptions import SubscriptionRow
from schemas.errors import InvalidInput
from schemas.ids import SUBSCRIPTION, public_id
from schemas.subscriptions import Secret

_TAG: Final = re.compile(r'(?:W/)?"[!#-~\x80-\xff]*"')  # RFC 9110 section 8.8.3
_BETWEEN: Final = re.compile(r"[ \t,]*")


def subscription_key(request: web.Request) -> UUID:
    return path_id(request, SUBSCRIPTION, "subscription_id")


async def locked(request: web.Request, conn: asyncpg.Connection) -> SubscriptionRow:
    """The subscription in the path, locked for a change. Raises 404, or 412 where `If-Match` names another version."""
    row = done(await subscriptions.lock_for_change(conn, subscription_key(request)), "subscription")
    if hdrs.IF_MATCH in request.headers:
        current = etag(row)
        if not matches(",".join(request.headers.getall(hdrs.IF_MATCH)), current):
            message = "the subscription is another by now than If-Match has it: get it again"
            raise ApiError(Fault(412, ErrorCode.PRECONDITION_FAILED, message, headers={hdrs.ETAG: current}))
    return row


def matches(if_match: str, current: str) -> bool:
    """Whether a version is among those of an If-Match (RFC 9110 section 13.1.1: a weak tag never is; * is any).

    Raises InvalidInput for what is no list of entity tags.
    """
    if if_match.strip() == "*":
        return True
    tags = _TAG.findall(if_match)
    if not tags or not _BETWEEN.fullmatch(_TAG.sub("", if_match)):
        raise InvalidInput.of("If-Match", 'must be * or entity tags in quotes, such as "7", as ETag says them')
    return current in tags


def etag(row: SubscriptionRow) -> str:
    """A digest of its version, which itself counts the changes of all tenants' subscriptions."""
    return f'"{hashlib.sha256(row.id.bytes + row.version.to_bytes(8, "big")).hexdigest()[:32]}"'


def tagged(row: SubscriptionRow) -> dict[str, str]:
    """The header of an answer that shows this row."""
    return {hdrs.ETAG: etag(row)}


def shown(request: web.Request, row: SubscriptionRow, *, new: Sequence[Secret] = ()) -> SubscriptionView:
    """A subscription. Each `new` secret stands among its `secrets`, and the first of them as `secret` too."""
    view = subscription_view(row, opened(request.app[VAULT], row, datetime.now(UTC), new=new))
    if new:
        view["secret"] = new[0].text
    return view


async def record(
    request: web.Request,
    conn: asyncpg.Connection,
    action: str,
    before: SubscriptionRow | None,
    after: SubscriptionRow | None,
) -> None:
    """Add to the audit log what became of a subscription, as it is shown: without its secrets."""
    row = before or after
    assert row is not None
    await audit.record(
        request,
        conn,
        f"subscription.{action}",
        public_id(SUBSCRIPTION, row.id),
        tenant=row.tenant,
        before=None if before is None else shown(request, before),
        after=None if after is None else shown(request, after),
    )
