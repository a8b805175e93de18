"""The catalogue of event types: one for the whole installation, written by its admins and read by everybody.

A name means the same for every tenant, as one producer publishes it for many. Each change is a change of the
subscriptions' version too (`locks.change_subscriptions`): admission under way ends before it, and what comes after it
sees it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import asyncpg
from sqlalchemy import ColumnElement
from uuid_utils.compat import uuid7

from infra.store import tables
from infra.store.locks import change_subscriptions
from infra.store.outcomes import Missing, Refused
from infra.store.query import Page, column_list, fetch_page

MAX_TYPES: Final = 1000
MAX_VERSIONS: Final = 50
MAX_SCHEMAS_BYTES: Final = 8_388_608  # of all types together: every process has them in memory


@dataclass(frozen=True, slots=True)
class EventTypeRow:
    """A type, without its schemas."""

    id: UUID
    name: str
    description: str
    example: bytes | None
    deprecated_at: datetime | None
    deprecation: str | None
    newest: int | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class VersionRow:
    """A version of a type's schema."""

    id: UUID
    event_type_id: UUID
    number: int
    schema: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What may be said of a type."""

    description: str
    example: bytes | None
    deprecated: bool
    deprecation: str | None


_COLUMNS = column_list(tables.event_types, EventTypeRow)
_VERSION_COLUMNS = column_list(tables.event_type_versions, VersionRow)

_INSERT = f"""
INSERT INTO event_types (id, name, description, example, deprecated_at, deprecation, version)
VALUES ($1, $2, $3, $4, CASE WHEN $5 THEN clock_timestamp() END, $6, $7)
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_SAVE = f"""
UPDATE event_types
SET description = $2, example = $3, deprecation = $5, version = $6, updated_at = clock_timestamp(),
    deprecated_at = CASE WHEN $4 THEN coalesce(deprecated_at, clock_timestamp()) END
WHERE id = $1
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_INSERT_VERSION = f"""
INSERT INTO event_type_versions (id, event_type_id, number, schema) VALUES ($1, $2, $3, $4)
RETURNING {_VERSION_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_SET_NEWEST = f"""
UPDATE event_types SET newest = $2, version = $3, updated_at = clock_timestamp() WHERE id = $1
RETURNING {_COLUMNS}
"""  # noqa: S608 -- column names of our own table

_BY_NAME = f"SELECT {_COLUMNS} FROM event_types WHERE name = $1 AND deleted_at IS NULL"  # noqa: S608

_SIZE = "SELECT coalesce(sum(octet_length(schema)), 0) FROM event_type_versions"


async def lock(conn: asyncpg.Connection) -> int:
    """Keep everybody else from changing the catalogue until this transaction ends; the version that it makes."""
    return await change_subscriptions(conn)


async def create(conn: asyncpg.Connection, name: str, wanted: Wanted, *, version: int) -> EventTypeRow | Refused:
    """Add a type. The catalogue is locked; `version` is what `lock` said."""
    if await conn.fetchval("SELECT 1 FROM event_types WHERE name = $1 AND deleted_at IS NULL", name):
        return Refused(f"name: there is an event type {name} already")
    if await conn.fetchval("SELECT count(*) FROM event_types WHERE deleted_at IS NULL") >= MAX_TYPES:
        return Refused(f"there are {MAX_TYPES} event types already, which is as many as there may be")
    said = (wanted.description, wanted.example, wanted.deprecated, wanted.deprecation)
    return _type(await conn.fetchrow(_INSERT, uuid7(), name, *said, version))


async def get(conn: asyncpg.Connection, name: str) -> EventTypeRow | Missing:
    record = await conn.fetchrow(_BY_NAME, name)
    return Missing() if record is None else EventTypeRow(**record)


async def list_page(
    conn: asyncpg.Connection, *, deprecated: bool | None, after: UUID | None, limit: int
) -> Page[EventTypeRow]:
    """Types, those added last first; only the deprecated ones, or only the others."""
    table = tables.event_types
    conditions: list[ColumnElement[bool]] = [table.c.deleted_at.is_(None)]
    if deprecated is not None:
        conditions.append(table.c.deprecated_at.is_not(None) if deprecated else table.c.deprecated_at.is_(None))
    return await fetch_page(conn, table, EventTypeRow, conditions, after=after, limit=limit)


async def save(conn: asyncpg.Connection, row: EventTypeRow, wanted: Wanted, *, version: int) -> EventTypeRow:
    """Store what may be changed of a type."""
    said = (wanted.description, wanted.example, wanted.deprecated, wanted.deprecation)
    return _type(await conn.fetchrow(_SAVE, row.id, *said, version))


async def add_version(
    conn: asyncpg.Connection, row: EventTypeRow, schema: bytes, *, version: int
) -> tuple[EventTypeRow, VersionRow] | Refused:
    """Add the next version of a type's schema, which is the newest from then on."""
    number = (row.newest or 0) + 1
    if number > MAX_VERSIONS:
        return Refused(f"the type has {MAX_VERSIONS} versions already, which is as many as it may have")
    if await conn.fetchval(_SIZE) + len(schema) > MAX_SCHEMAS_BYTES:
        return Refused(f"all schemas together may have {MAX_SCHEMAS_BYTES} bytes; delete a type that nobody publishes")
    added = await conn.fetchrow(_INSERT_VERSION, uuid7(), row.id, number, schema)
    assert added is not None
    return _type(await conn.fetchrow(_SET_NEWEST, row.id, number, version)), VersionRow(**added)


async def list_versions(
    conn: asyncpg.Connection, *, event_type_id: UUID, after: UUID | None, limit: int
) -> Page[VersionRow]:
    """The versions of a type, the newest first."""
    table = tables.event_type_versions
    of_it: Sequence[ColumnElement[bool]] = [table.c.event_type_id == event_type_id]
    return await fetch_page(conn, table, VersionRow, of_it, after=after, limit=limit)


async def get_version(conn: asyncpg.Connection, event_type_id: UUID, number: int) -> VersionRow | Missing:
    record = await conn.fetchrow(
        f"SELECT {_VERSION_COLUMNS} FROM event_type_versions WHERE event_type_id = $1 AND number = $2",  # noqa: S608
        event_type_id,
        number,
    )
    return Missing() if record is None else VersionRow(**record)


async def delete(conn: asyncpg.Connection, row: EventTypeRow, *, version: int) -> None:
    """Take a type away, and its schemas. Its name is free again."""
    await conn.execute("DELETE FROM event_type_versions WHERE event_type_id = $1", row.id)
    await conn.execute(
        "UPDATE event_types SET deleted_at = clock_timestamp(), version = $2, newest = NULL, example = NULL "
        "WHERE id = $1",
        row.id,
        version,
    )


def _type(record: asyncpg.Record | None) -> EventTypeRow:
    assert record is not None
    return EventTypeRow(**record)
