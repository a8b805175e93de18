"""Attempts: lists of them over all deliveries, one of them, and what is asked of deliveries by their attempts.

No index but that by delivery stands on `attempts`, which every POST adds a row to. What is asked for besides is found
by reading from the newest one down, so many of them for a page.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

import asyncpg
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    LargeBinary,
    Text,
    and_,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
)
from sqlalchemy.dialects import postgresql

from infra.store import tables
from infra.store.history import ANY_TIME, AttemptRow, DeliveryFilter, TimeRange, delivery_conditions, time_conditions
from infra.store.outcomes import Missing
from infra.store.owners import Owned, tenant_of
from infra.store.query import PLAN_ANEW, Page, columns, equal, fetch, looked_page, sought
from schemas.deliveries import StatusClass
from schemas.ids import CLOCKS_APART_MS, least_key_after

SCANNED_ROWS: Final = 20_000  # for a page of a filter: each costs a look at its delivery, too

_CLOCKS_APART: Final = timedelta(milliseconds=CLOCKS_APART_MS)
_NO_ANSWER: Final = 0  # in place of a status


@dataclass(frozen=True, slots=True)
class AttemptFilter:
    """Which attempts; None asks for nothing. `started` is by when their ids were made."""

    delivery_id: UUID | None = None
    subscription_id: UUID | None = None
    tenant: str | None = None
    outcome: str | None = None
    status_class: StatusClass | None = None
    started: TimeRange = ANY_TIME


@dataclass(frozen=True, slots=True)
class AttemptedFilter:
    """Which deliveries, by their attempts besides: the class of the last answer, and text.

    `text` stands in the reason of the delivery or of an attempt, or in what is kept of an answer's body; ASCII letters
    in any case.
    """

    deliveries: DeliveryFilter
    status_class: StatusClass | None = None
    text: str | None = None


async def list_page(
    conn: asyncpg.Connection,
    wanted: AttemptFilter,
    *,
    after: UUID | None,
    limit: int,
    scanned_rows: int = SCANNED_ROWS,
) -> Page[AttemptRow]:
    """Attempts, newest first. A page looks at so many rows: it may be short of `limit` with more to come, or empty."""
    table, of = tables.attempts, tables.deliveries
    bounds = [*equal((table.c.delivery_id, wanted.delivery_id)), *time_conditions(table, wanted.started)]
    if wanted.delivery_id is not None:  # an attempt is made after its delivery
        bounds.append(table.c.id >= least_key_after(wanted.delivery_id))
    if after is not None:
        bounds.append(table.c.id < after)
    conditions = equal((table.c.outcome, wanted.outcome))
    if wanted.status_class is not None:
        conditions.append(_in_class(func.coalesce(table.c.status_code, _NO_ANSWER), wanted.status_class))
    theirs = equal((of.c.subscription_id, wanted.subscription_id), (of.c.tenant, wanted.tenant))
    if theirs:
        before = TimeRange(before=wanted.started.before and wanted.started.before + _CLOCKS_APART)
        conditions.append(exists().where(of.c.id == table.c.delivery_id, *theirs, *time_conditions(of, before)))
    most = max(scanned_rows, limit + 1) if conditions else limit + 1
    stream = select(*columns(table, AttemptRow)).where(*bounds).order_by(table.c.id.desc()).limit(most)
    async with conn.transaction():
        await conn.execute(PLAN_ANEW)
        if await _of_anothers_delivery(conn, wanted):
            return Page([], None)  # whatever number of them there is
        records = await fetch(conn, sought(stream, conditions, most).limit(limit + 2))
    return looked_page(records, AttemptRow, limit=limit, most=most)


async def _of_anothers_delivery(conn: asyncpg.Connection, wanted: AttemptFilter) -> bool:
    if wanted.tenant is None or wanted.delivery_id is None:
        return False
    return await tenant_of(conn, Owned.DELIVERY, wanted.delivery_id) != wanted.tenant


async def get(conn: asyncpg.Connection, attempt_id: UUID) -> AttemptRow | Missing:
    statement = select(*columns(tables.attempts, AttemptRow)).where(tables.attempts.c.id == attempt_id)
    records = await fetch(conn, statement)
    return AttemptRow(**records[0]) if records else Missing()


def attempted_conditions(wanted: AttemptedFilter) -> list[ColumnElement[bool]]:
    conditions = delivery_conditions(wanted.deliveries)
    table = tables.attempts
    if wanted.status_class is not None:
        last = select(func.coalesce(table.c.status_code, _NO_ANSWER)).where(*_of_the_delivery())
        last_status = last.order_by(table.c.id.desc()).limit(1).scalar_subquery()
        conditions.append(_in_class(last_status, wanted.status_class))
    if wanted.text is not None:
        pattern = f"%{_escaped(wanted.text)}%"
        answered = exists().where(
            *_of_the_delivery(), or_(table.c.reason.ilike(pattern, escape="\\"), _body_has(wanted.text))
        )
        conditions.append(or_(tables.deliveries.c.reason.ilike(pattern, escape="\\"), answered))
    return conditions


def _of_the_delivery() -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    """Attempts at the row of `deliveries`, bounded by `least_key_after` it, which skips earlier days."""
    of = tables.deliveries.c.id
    hexadecimal = literal("x").concat(func.left(func.replace(cast(of, Text), "-", ""), 12))
    least_ms = cast(cast(hexadecimal, postgresql.BIT(48)), BigInteger) - CLOCKS_APART_MS
    least = cast(func.lpad(func.to_hex(least_ms), 12, "0").concat("0" * 20), postgresql.UUID)
    return tables.attempts.c.delivery_id == of, tables.attempts.c.id >= least


def _body_has(text: str) -> ColumnElement[bool]:
    """Whether an answer's bytes hold a text.

    Bytes that are no UTF-8 are no text to PostgreSQL. Read as Latin-1, in which each byte is a letter, they are; all
    but the zero byte, and where there is one, the bytes are compared as they are.
    """
    body, sought = tables.attempts.c.response_body, text.encode()
    pattern = f"%{_escaped(sought.decode('latin-1'))}%"
    no_zero = _position(body, b"\x00") == 0
    letters = func.convert_from(body, "LATIN1").ilike(pattern, escape="\\")
    as_they_are = _position(body, sought) > 0
    return and_(body.is_not(None), case((no_zero, letters), else_=as_they_are))


def _position(body: ColumnElement[bytes], sought: bytes) -> ColumnElement[int]:
    """Where bytes stand in others, from 1 on; 0 for nowhere."""
    return func.position(literal(sought, LargeBinary).op("IN")(body), type_=Integer)


def _escaped(text: str) -> str:
    """Text as itself in a pattern of LIKE."""
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def _in_class(status: ColumnElement[int], status_class: StatusClass) -> ColumnElement[bool]:
    if status_class is StatusClass.NONE:
        return status == _NO_ANSWER
    least = int(status_class[0]) * 100
    return status.between(least, least + 99)
