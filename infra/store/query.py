"""Statements that are composed at run time (the API's lists), built with SQLAlchemy Core and run by asyncpg.

One driver and one pool: SQLAlchemy only writes the SQL, with asyncpg's `$n` parameters. What does not vary is plain
SQL beside the function that runs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

import asyncpg
from sqlalchemy import Column, ColumnElement, Dialect, Select, Table, and_, func, or_, select, true
from sqlalchemy.dialects.postgresql import asyncpg as asyncpg_dialect
from sqlalchemy.sql.util import ClauseAdapter

Row = TypeVar("Row")

# A plan that is kept knows neither the bounds of a time range nor a LIMIT: it takes the one for half a percent of the
# table and the other for a tenth of what there is, and sorts instead of reading in order.
PLAN_ANEW: Final = "SET LOCAL plan_cache_mode = force_custom_plan"

_DIALECT: Dialect = asyncpg_dialect.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Part of a list, newest first. `next_after` is the key to go on from, None at the end."""

    rows: Sequence[Row]
    next_after: UUID | None


def compiled(statement: Select[Any]) -> tuple[str, list[object]]:
    """The SQL of a statement and its arguments, as asyncpg takes them."""
    sql = statement.compile(dialect=_DIALECT, compile_kwargs={"render_postcompile": True})
    return str(sql), [sql.params[name] for name in sql.positiontup or ()]


async def fetch(conn: asyncpg.Connection, statement: Select[Any]) -> list[asyncpg.Record]:
    sql, arguments = compiled(statement)
    return await conn.fetch(sql, *arguments)


async def fetch_value(conn: asyncpg.Connection, statement: Select[Any]) -> Any:
    sql, arguments = compiled(statement)
    return await conn.fetchval(sql, *arguments)


async def fetch_page(
    conn: asyncpg.Connection,
    table: Table,
    row_type: type[Row],
    conditions: Sequence[ColumnElement[bool]],
    *,
    after: UUID | None,
    limit: int,
) -> Page[Row]:
    """The next `limit` rows of `table`, newest first.

    Keyset paging on the primary key, which is also the order: a row that comes or goes meanwhile neither repeats
    nor skips another.
    """
    key = table.c.id
    statement = select(*columns(table, row_type)).where(*conditions).order_by(key.desc()).limit(limit + 1)
    if after is not None:
        statement = statement.where(key < after)
    records = await fetch(conn, statement)
    rows = [row_type(**record) for record in records[:limit]]
    return Page(rows, records[limit - 1]["id"] if len(records) > limit else None)


def sought(stream: Select[Any], conditions: Sequence[ColumnElement[bool]], most: int) -> Select[Any]:
    """Of a stream what keeps to the conditions; and whatever stands at its end and before, where the looking ends."""
    numbered = stream.subquery("numbered")
    place = func.row_number().over(order_by=numbered.c.id.desc()).label("place")
    scanned = select(numbered, place).subquery("scanned")
    # The conditions are of the table's columns; here those of the rows that were looked at stand for them.
    of_scanned = ClauseAdapter(scanned)
    kept = and_(true(), *(of_scanned.traverse(condition) for condition in conditions))
    statement = select(scanned, kept.label("sought")).where(or_(kept, scanned.c.place >= most - 1))
    return statement.order_by(scanned.c.id.desc())


def looked_page(records: Sequence[asyncpg.Record], row_type: type[Row], *, limit: int, most: int) -> Page[Row]:
    """The page that `sought` found, of which `limit + 2` records were read."""
    looked_at = [record for record in records if record["place"] < most]
    found = [record for record in looked_at if record["sought"]]
    names = [field.name for field in fields(row_type)]  # type: ignore[arg-type]
    rows = [row_type(**{name: record[name] for name in names}) for record in found[:limit]]
    if len(found) > limit:
        return Page(rows, found[limit - 1]["id"])
    more = len(records) > len(looked_at)
    return Page(rows, behind(looked_at[-1], records[-1]["id"]) if more else None)


def behind(last: asyncpg.Record, following: UUID) -> UUID:
    """Where to go on between two rows: at the first if it is shown, else halfway, which tells neither's key."""
    key: UUID = last["id"]
    return key if last["sought"] else UUID(int=(key.int + following.int) // 2 + 1)


def columns(table: Table, row_type: type[Any]) -> list[Column[Any]]:
    """The columns of `table` that the dataclass `row_type` has fields for, so that `row_type(**record)` builds it."""
    return [table.c[field.name] for field in fields(row_type)]


def column_list(table: Table, row_type: type[Any]) -> str:
    """The same as SQL text, for a statement that is written out."""
    return ", ".join(f"{table.name}.{column.name}" for column in columns(table, row_type))


def equal(*pairs: tuple[Any, object]) -> list[ColumnElement[bool]]:
    """A condition for each (column, value) whose value is not None."""
    return [column == value for column, value in pairs if value is not None]
