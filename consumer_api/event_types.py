"""`/v1/event-types`: the catalogue of event types, and the schemas that their events keep.

It is the installation's: admin keys write it, and any key with the scope reads it. So nothing of a tenant belongs into
it, and a tenant's key cannot decide what another tenant's events have to be.
"""

from dataclasses import replace
from functools import partial
from typing import Final
from urllib.parse import quote

import asyncpg
from aiohttp import web

from consumer_api import audit
from consumer_api.answers import json_answer
from consumer_api.context import STORE
from consumer_api.errors import ErrorCode
from consumer_api.event_type_inputs import (
    EventTypeCreate,
    EventTypePatch,
    EventTypesQuery,
    EventTypeVersionCreate,
    read_with_json,
)
from consumer_api.event_type_views import (
    EventTypeVersionView,
    EventTypeView,
    event_type_view,
    recorded_type,
    recorded_version,
    version_view,
)
from consumer_api.exporting import LIST_ERRORS, exported, list_answer
from consumer_api.idempotency import keep
from consumer_api.outcomes import done
from consumer_api.queries import ListQuery
from consumer_api.reading import read_query
from consumer_api.route import Route
from infra.store import event_types
from infra.store.event_types import EventTypeRow, VersionRow, Wanted
from schemas.errors import InvalidInput, Problem
from schemas.event_schemas import EventSchema
from schemas.scopes import Scope

_WHAT: Final = "event type"
_MAX_DIGITS: Final = 9


def routes() -> list[Route]:
    every, one = "/v1/event-types", "/v1/event-types/{event_type}"
    read, write = Scope.EVENT_TYPES_READ, Scope.EVENT_TYPES_WRITE
    return [
        Route(
            method="POST",
            path=every,
            handler=create,
            scope=write,
            admin=True,
            idempotent=True,
            body=EventTypeCreate,
            answers={201: EventTypeView},
            errors=(ErrorCode.CONFLICT,),
        ),
        Route(
            method="GET",
            path=every,
            handler=list_types,
            scope=read,
            query=EventTypesQuery,
            answers={200: exported(EventTypeView)},
            errors=LIST_ERRORS,
        ),
        Route(method="GET", path=one, handler=get, scope=read, answers={200: EventTypeView}),
        Route(
            method="PATCH",
            path=one,
            handler=patch,
            scope=write,
            admin=True,
            body=EventTypePatch,
            answers={200: EventTypeView},
        ),
        Route(method="DELETE", path=one, handler=delete, scope=write, admin=True, answers={204: None}),
        Route(
            method="POST",
            path=f"{one}/versions",
            handler=add_version,
            scope=write,
            admin=True,
            idempotent=True,
            body=EventTypeVersionCreate,
            answers={201: EventTypeVersionView},
            errors=(ErrorCode.CONFLICT,),
        ),
        Route(
            method="GET",
            path=f"{one}/versions",
            handler=list_versions,
            scope=read,
            query=ListQuery,
            answers={200: exported(EventTypeVersionView)},
            errors=LIST_ERRORS,
        ),
        Route(
            method="GET",
            path=f"{one}/versions/{{version}}",
            handler=get_version,
            scope=read,
            answers={200: EventTypeVersionView},
        ),
    ]


async def create(request: web.Request) -> web.Response:
    """Add a type. Its schema holds for every event that is published from now on, by HTTP or at the broker."""
    wanted, given = await read_with_json(request, EventTypeCreate)
    _check_deprecation(wanted.deprecated, wanted.deprecation)
    schema = given.get("schema")
    said = Wanted(
        description=wanted.description,
        example=given.get("example"),
        deprecated=wanted.deprecated,
        deprecation=wanted.deprecation,
    )
    if schema is not None:
        _check_example(EventSchema(schema), said.example)
    async with request.app[STORE].transaction() as conn:
        version = await event_types.lock(conn)
        row = done(await event_types.create(conn, wanted.name, said, version=version), _WHAT)
        if schema is not None:
            row, added = done(await event_types.add_version(conn, row, schema, version=version), _WHAT)
        await _record(request, conn, "created", None, row)
        if schema is not None:
            await _record_version(request, conn, row, added)
        return await keep(request, conn, json_answer(event_type_view(row), status=201, headers=_location(row.name)))


async def list_types(request: web.Request) -> web.StreamResponse:
    """List event types, those added last first."""
    query = read_query(request, EventTypesQuery)
    read = partial(event_types.list_page, deprecated=query.deprecated)
    return await list_answer(request, query, read, event_type_view, EventTypeView, name="event-types")


async def get(request: web.Request) -> web.Response:
    """Get an event type."""
    async with request.app[STORE].connection() as conn:
        row = await _row(request, conn)
    return json_answer(event_type_view(row))


async def patch(request: web.Request) -> web.Response:
    """Change what is said of a type. A schema is changed by a new version."""
    wanted, given = await read_with_json(request, EventTypePatch)
    fields = wanted.model_fields_set
    for name in ("description", "deprecated"):
        if name in fields and getattr(wanted, name) is None:
            raise InvalidInput.of(name, "must not be null")
    async with request.app[STORE].transaction() as conn:
        version = await event_types.lock(conn)
        row = await _row(request, conn)
        said = Wanted(
            description=row.description if wanted.description is None else wanted.description,
            example=given.get("example") if "example" in fields else row.example,
            deprecated=row.deprecated_at is not None if wanted.deprecated is None else wanted.deprecated,
            deprecation=wanted.deprecation if "deprecation" in fields else row.deprecation,
        )
        if wanted.deprecated is False and "deprecation" not in fields:
            said = replace(said, deprecation=None)
        _check_deprecation(said.deprecated, said.deprecation)
        if "example" in fields and row.newest is not None:
            newest = done(await event_types.get_version(conn, row.id, row.newest), _WHAT)
            _check_example(EventSchema(newest.schema), said.example)
        changed = await event_types.save(conn, row, said, version=version)
        await _record(request, conn, "updated", row, changed)
    return json_answer(event_type_view(changed))


async def delete(request: web.Request) -> web.Response:
    """Delete a type from the catalogue, with its schemas. Subscriptions and events stay."""
    async with request.app[STORE].transaction() as conn:
        version = await event_types.lock(conn)
        row = await _row(request, conn)
        await event_types.delete(conn, row, version=version)
        await _record(request, conn, "deleted", row, None)
    return web.Response(status=204)


async def add_version(request: web.Request) -> web.Response:
    """Add a version of a type's schema: what names no version is checked against it from now on.

    The type's example has to keep it; one that is given here takes its place.
    """
    _, given = await read_with_json(request, EventTypeVersionCreate)
    schema = given.get("schema")
    if schema is None:
        raise InvalidInput.of("schema", "must be a JSON Schema: an object, or true or false")
    compiled = EventSchema(schema)  # while admission is not kept back
    async with request.app[STORE].transaction() as conn:
        version = await event_types.lock(conn)
        row = await _row(request, conn)
        _check_example(compiled, given.get("example", row.example))
        before = row
        row, added = done(await event_types.add_version(conn, row, schema, version=version), _WHAT)
        if "example" in given:
            row = await event_types.save(conn, row, _said(row, given["example"]), version=version)
            await _record(request, conn, "updated", before, row)
        await _record_version(request, conn, row, added)
        view = version_view(row.name, added)
        return await keep(request, conn, json_answer(view, status=201, headers={"Location": view["dataschema"]}))


async def list_versions(request: web.Request) -> web.StreamResponse:
    """List the versions of a type's schema, the newest first."""
    query = read_query(request, ListQuery)
    async with request.app[STORE].connection() as conn:
        row = await _row(request, conn)
    read, view = partial(event_types.list_versions, event_type_id=row.id), partial(version_view, row.name)
    return await list_answer(request, query, read, view, EventTypeVersionView, name="event-type-versions")


async def get_version(request: web.Request) -> web.Response:
    """Get a version of a type's schema."""
    number = request.match_info["version"]
    if not (number.isascii() and number.isdecimal() and len(number) <= _MAX_DIGITS):
        raise InvalidInput.of("version", "must be the number of a version")
    async with request.app[STORE].connection() as conn:
        row = await _row(request, conn)
        found = done(await event_types.get_version(conn, row.id, int(number)), "version of the event type")
    return json_answer(version_view(row.name, found))


async def _row(request: web.Request, conn: asyncpg.Connection) -> EventTypeRow:
    """The type in the path; no rule of names has to be kept by who asks for one."""
    name = request.match_info["event_type"]
    return done(await event_types.get(conn, name.replace("\x00", "\ufffd")), _WHAT)


def _location(name: str) -> dict[str, str]:
    return {"Location": f"/v1/event-types/{quote(name, safe='')}"}


def _said(row: EventTypeRow, example: bytes) -> Wanted:
    return Wanted(
        description=row.description,
        example=example,
        deprecated=row.deprecated_at is not None,
        deprecation=row.deprecation,
    )


def _check_deprecation(deprecated: bool, deprecation: str | None) -> None:
    if deprecation is not None and not deprecated:
        raise InvalidInput.of("deprecation", "is for a type that is deprecated")


def _check_example(schema: EventSchema, example: bytes | None) -> None:
    """Raises InvalidInput for an example that breaks the schema."""
    fault = None if example is None else schema.fault(example)
    if fault is not None:
        raise InvalidInput([Problem(f"example{fault.field.removeprefix('data')}", fault.message)])


async def _record(
    request: web.Request, conn: asyncpg.Connection, what: str, before: EventTypeRow | None, after: EventTypeRow | None
) -> None:
    row = before or after
    assert row is not None
    await audit.record(
        request,
        conn,
        f"event_type.{what}",
        row.name,
        tenant=None,
        before=None if before is None else recorded_type(before),
        after=None if after is None else recorded_type(after),
    )


async def _record_version(request: web.Request, conn: asyncpg.Connection, row: EventTypeRow, added: VersionRow) -> None:
    after = recorded_version(row.name, added)
    await audit.record(request, conn, "event_type.version_added", row.name, tenant=None, after=after)
