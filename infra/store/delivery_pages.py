"""Pages of deliveries, newest first, each at a bounded cost, whatever is asked for and however little of it there is.

A page is read from a stream: rows that an index has in this order. What the index does not know is looked at row by
row, in at most SCANNED_ROWS of them. So a page may be short of its limit, and even empty, with more to come; its cursor
is where the looking ended. That may be at a row of another tenant, so a cursor is never the key of what is not shown.

| asked for | the stream |
|---|---|
| an event | the keys of its millisecond |
| a replay in bulk | its deliveries |
| a subscription | its deliveries; where none but dead and canceled ones are asked for, those |
| a tenant | the deliveries of its subscriptions, merged; beyond OWNERS of them, as for the rest |
| dead or canceled ones | those |
| the rest (a type, what is unfinished) | all |

An index by tenant or by type would cost the database a quarter more CPU for each delivery that is inserted and settled,
and a fifth more WAL (measured). One over what is dead and canceled costs nothing to what is delivered.
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg
from sqlalchemy import ColumnElement, Select, select, true, union_all

from infra.store import tables
from infra.store.attempts import AttemptedFilter, attempted_conditions
from infra.store.deliveries import DeliveryRow
from infra.store.history import DeliveryFilter, time_conditions
from infra.store.owners import Owned, tenant_of
from infra.store.query import PLAN_ANEW, Page, columns, fetch, looked_page, sought
from schemas.deliveries import Status
from schemas.ids import keys_alike

SCANNED_ROWS: Final = 10_000
OWNERS: Final = 100

# How many rows cost as much as one whose attempts are read, or as one of a merge, whose rows lie apart (measured).
_AMID_ATTEMPTS: Final = 10
_AMID_OTHERS: Final = 2

GIVEN_UP: Final = frozenset({Status.DEAD, Status.CANCELED})

_COUNT_OWNERS: Final = "SELECT count(*) FROM (SELECT FROM subscriptions WHERE tenant = $1 LIMIT $2) AS theirs"


async def list_page(
    conn: asyncpg.Connection,
    wanted: AttemptedFilter,
    *,
    after: UUID | None,
    limit: int,
    scanned_rows: int = SCANNED_ROWS,
) -> Page[DeliveryRow]:
    """The next deliveries that are wanted, `limit` of them at most."""
    async with conn.transaction():
        await conn.execute(PLAN_ANEW)
        by_replay = await _by_replay(conn, wanted.deliveries)
        owners = None if by_replay else await _owners(conn, wanted.deliveries)
        if owners == 0 or not await _of_its_tenant(conn, wanted.deliveries):
            return Page([], None)
        in_index = _in_the_index(wanted, by_replay=by_replay)
        most = limit + 1 if in_index else _share(scanned_rows, wanted, owners, least=limit + 1)
        stream = _stream(wanted.deliveries, owners, after, most, by_replay=by_replay)
        records = await fetch(conn, sought(stream, attempted_conditions(wanted), most).limit(limit + 2))
    return looked_page(records, DeliveryRow, limit=limit, most=most)


def _in_the_index(wanted: AttemptedFilter, *, by_replay: bool) -> bool:
    """Whether each row of the stream is one that is wanted."""
    of = wanted.deliveries
    by_row = wanted.status_class or wanted.text or of.event_type or not GIVEN_UP.issuperset(of.statuses)
    of_replay = by_replay == (of.replay_id is not None) and not (by_replay and of.statuses)
    return not by_row and of_replay and of.event_id is None


def _share(scanned_rows: int, wanted: AttemptedFilter, owners: int | None, *, least: int) -> int:
    """How many rows of each owner may be looked at."""
    if wanted.status_class or wanted.text:
        scanned_rows //= _AMID_ATTEMPTS
    if owners:
        scanned_rows //= _AMID_OTHERS * owners
    return max(least, scanned_rows)


async def _by_replay(conn: asyncpg.Connection, wanted: DeliveryFilter) -> bool:
    """Whether the deliveries of the replay are the stream. Those of an admin's may be of other tenants too."""
    if wanted.replay_id is None or wanted.subscription_id is not None or wanted.event_id is not None:
        return False
    return wanted.tenant is None or await tenant_of(conn, Owned.REPLAY, wanted.replay_id) == wanted.tenant


async def _owners(conn: asyncpg.Connection, wanted: DeliveryFilter) -> int | None:
    """How many subscriptions' deliveries are to be merged; None where the stream is another one."""
    if wanted.tenant is None or wanted.subscription_id is not None or wanted.event_id is not None:
        return None
    number: int = await conn.fetchval(_COUNT_OWNERS, wanted.tenant, OWNERS + 1)
    return number if number <= OWNERS else None


async def _of_its_tenant(conn: asyncpg.Connection, wanted: DeliveryFilter) -> bool:
    """Whether what is asked for is of the tenant; else not even that there is a stream of it may be told."""
    if wanted.tenant is None:
        return True
    asked_for = (Owned.SUBSCRIPTION, wanted.subscription_id), (Owned.EVENT, wanted.event_id)
    tenants = [await tenant_of(conn, owned, key) for owned, key in asked_for if key is not None]
    return all(tenant == wanted.tenant for tenant in tenants)


def _stream(
    wanted: DeliveryFilter, owners: int | None, after: UUID | None, most: int, *, by_replay: bool
) -> Select[Any]:
    """The first `most` rows of an index or several, merged, in order."""
    table = tables.deliveries
    bounds = time_conditions(table, wanted.created)
    if after is not None:
        bounds.append(table.c.id < after)
    if wanted.event_id is not None:
        bounds.append(table.c.id.between(*keys_alike(wanted.event_id)))
    if wanted.subscription_id is not None:
        bounds.append(table.c.subscription_id == wanted.subscription_id)
    if by_replay:
        bounds.append(table.c.replay_id == wanted.replay_id)
    # Each status on its own: an index has the rows of one in order, and not those of two.
    statuses = wanted.statuses if not by_replay and GIVEN_UP.issuperset(wanted.statuses) else ()
    alone = [[table.c.status == status] for status in statuses]
    owner = wanted.tenant if owners else None
    parts = [_part([*bounds, *status], owner, most) for status in alone or [[]]]
    if len(parts) == 1:
        return parts[0]
    merged = union_all(*parts).subquery("merged")
    return select(merged).order_by(merged.c.id.desc()).limit(most)


def _part(conditions: Sequence[ColumnElement[bool]], owner: str | None, most: int) -> Select[Any]:
    """The first rows that keep to conditions which an index knows; with an `owner`, those of each of its subscriptions.

    The first `most` of all are among the first `most` of each.
    """
    table = tables.deliveries
    rows = select(*columns(table, DeliveryRow))
    if owner is None:
        return rows.where(*conditions).order_by(table.c.id.desc()).limit(most)
    subscriptions = tables.subscriptions
    owners = select(subscriptions.c.id).where(subscriptions.c.tenant == owner).subquery("owners")
    its = rows.where(table.c.subscription_id == owners.c.id, *conditions).order_by(table.c.id.desc()).limit(most)
    theirs = its.lateral("theirs")
    return select(theirs).select_from(owners.join(theirs, true())).order_by(theirs.c.id.desc()).limit(most)
