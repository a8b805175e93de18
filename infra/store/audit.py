"""The audit log: who changed what, when and from where. Rows are added and never changed.

Triggers refuse whatever else is done to them (v0015), but for the upkeep's deleting of what is past its retention.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson
from sqlalchemy import ColumnElement, Select, Text, cast, func, select
from uuid_utils.compat import uuid7

from infra.store import tables
from infra.store.history import ANY_TIME, TimeRange, time_conditions, within
from infra.store.outcomes import Missing
from infra.store.query import Page, equal, fetch

MAX_SHOWN_BYTES: Final = 131_072  # of `before`, and of `after`: a subscription at all its limits is below 110 KiB
MAX_PAGE_BYTES: Final = 4_194_304

_INSERT: Final = """
INSERT INTO audit_log (id, tenant, key_id, action, target, address, request_id, before, after)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that was changed. `before` and `after` are as the API shows them, so without secrets.

    Without a key it was the command `hookhare`, which works on the database itself and is asked by no request.
    """

    tenant: str | None
    key_id: UUID | None
    action: str
    target: str
    address: str | None
    request_id: str | None
    before: Mapping[str, Any] | None = field(default=None, repr=False)
    after: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An entry, with what its key is called today; keys are kept for good."""

    id: UUID
    tenant: str | None
    key_id: UUID | None
    key_tenant: str | None
    key_name: str | None
    key_prefix: str | None
    action: str
    target: str
    address: str | None
    request_id: str | None
    before: dict[str, Any] | None = field(repr=False)
    after: dict[str, Any] | None = field(repr=False)
    created_at: datetime


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries; None asks for nothing. `tenant` is whose the target is.

    With a `key_tenant`, a `key_id` finds nothing unless the key is that tenant's.
    """

    tenant: str | None = None
    key_id: UUID | None = None
    key_tenant: str | None = None
    action: str | None = None
    target: str | None = None
    created: TimeRange = ANY_TIME


# $2 the actions, $3 how many.
_LATEST_OF: Final = """
SELECT action, created_at, after FROM audit_log WHERE target = $1 AND action = ANY($2) ORDER BY id DESC LIMIT $3
"""


@dataclass(frozen=True, slots=True)
class Deed:
    """That something was done to a target, as far as its history tells."""

    action: str
    created_at: datetime
    after: dict[str, Any] | None = field(repr=False)


_LOG = tables.audit_log
_KEYS = tables.api_keys
_COLUMNS = (
    *(_LOG.c.id, _LOG.c.tenant, _LOG.c.key_id),
    *(_KEYS.c.tenant.label("key_tenant"), _KEYS.c.name.label("key_name"), _KEYS.c.prefix.label("key_prefix")),
    *(_LOG.c.action, _LOG.c.target, _LOG.c.address, _LOG.c.request_id, _LOG.c.before, _LOG.c.after, _LOG.c.created_at),
)


async def add(conn: asyncpg.Connection, change: Change) -> None:
    """Record a change, in the transaction that makes it."""
    await conn.execute(
        _INSERT,
        uuid7(),
        change.tenant,
        change.key_id,
        change.action,
        change.target,
        change.address,
        change.request_id,
        plain(change.before),
        plain(change.after),
    )


async def list_page(conn: asyncpg.Connection, wanted: AuditFilter, *, after: UUID | None, limit: int) -> Page[AuditRow]:
    """Entries, the newest first. A page is bounded in bytes too: it may be short of `limit` with more to come."""
    conditions: list[ColumnElement[bool]] = [
        *equal(
            (_LOG.c.tenant, wanted.tenant),
            (_LOG.c.key_id, wanted.key_id),
            (_LOG.c.action, wanted.action),
            (_LOG.c.target, wanted.target),
        ),
        *time_conditions(_LOG, wanted.created),
    ]
    if wanted.key_id is not None and wanted.key_tenant is not None:
        theirs = (_KEYS.c.id == wanted.key_id, _KEYS.c.tenant == wanted.key_tenant)
        conditions.append(select(_KEYS.c.id).where(*theirs).exists())
    if after is not None:
        conditions.append(_LOG.c.id < after)
    sizes = [func.coalesce(func.octet_length(cast(shown, Text)), 0) for shown in (_LOG.c.before, _LOG.c.after)]
    found = await fetch(
        conn,
        select(_LOG.c.id, (sizes[0] + sizes[1]).label("size_bytes"))
        .where(*conditions)
        .order_by(_LOG.c.id.desc())
        .limit(limit + 1),
    )
    shown = within([record["size_bytes"] for record in found], most_rows=limit, most_bytes=MAX_PAGE_BYTES)
    if not shown:
        return Page([], None)
    ids = [record["id"] for record in found[:shown]]
    records = await fetch(conn, _select().where(_LOG.c.id.in_(ids)).order_by(_LOG.c.id.desc()))
    return Page([AuditRow(**record) for record in records], ids[-1] if len(found) > shown else None)


async def latest_of(conn: asyncpg.Connection, target: str, actions: Sequence[str], *, limit: int) -> list[Deed]:
    """The last `limit` times that one of these was done to a target, the latest first."""
    return [Deed(**record) for record in await conn.fetch(_LATEST_OF, target, actions, limit)]


async def get(conn: asyncpg.Connection, entry_id: UUID) -> AuditRow | Missing:
    records = await fetch(conn, _select().where(_LOG.c.id == entry_id))
    return AuditRow(**records[0]) if records else Missing()


def _select() -> Select[Any]:
    return select(*_COLUMNS).select_from(_LOG.outerjoin(_KEYS, _KEYS.c.id == _LOG.c.key_id))


def plain(shown: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the API shows, as plain JSON: moments and the like as it writes them.

    Where that is too large, a note of its size stands in place of its largest fields.
    """
    if shown is None:
        return None
    fields: dict[str, Any] = orjson.loads(orjson.dumps(shown, option=orjson.OPT_UTC_Z))
    sizes = {name: len(orjson.dumps(value)) for name, value in fields.items()}
    for name in sorted(sizes, key=lambda one: sizes[one], reverse=True):
        if len(orjson.dumps(fields)) <= MAX_SHOWN_BYTES:
            break
        fields[name] = f"left out of the audit log: {sizes[name]} bytes"
    return fields
