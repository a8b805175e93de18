"""Answers to lists: a page in JSON, or all that matches as a stream of CSV, NDJSON or XML.

An export is read by keyset pages, each a short read of its own: no transaction is open while the caller downloads, and
no more than one page is in memory. It has what is there when its place in the list is read; what is added meanwhile is
not in it. When it cannot go on, be it because its key was revoked, the connection is cut amid the body, which no client
takes for the end.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

import asyncpg
import structlog
from aiohttp import web

from consumer_api import views
from consumer_api.answers import page_answer
from consumer_api.caller import unauthorized
from consumer_api.connections import LEAST_TAKEN_BYTES
from consumer_api.context import CALLER, EXPORTS
from consumer_api.errors import ApiError, ErrorCode, too_many_exports
from consumer_api.export_formats import MEDIA_TYPES, ExportFormat, Writer, writer
from consumer_api.queries import MAX_PAGE, ListQuery
from consumer_api.route import Media
from consumer_api.searching import searching
from infra.store import api_keys
from infra.store.query import Page
from schemas.errors import HookhareError, InvalidInput

log = structlog.get_logger(__name__)

MAX_EXPORTS: Final = 4  # at once in a process: each keeps a database connection busy
MAX_OF_TENANT: Final = 2  # of these, or one that reads slowly would keep all others from theirs
STALLED_S: Final = 30.0  # for as long a caller may take next to nothing

LIST_ERRORS: Final = (ErrorCode.QUERY_TOO_BROAD, ErrorCode.OVERLOADED)

_BY_MEDIA_TYPE: Final = {media_type: one for one, media_type in MEDIA_TYPES.items()}

Row = TypeVar("Row")
View = Callable[[Row], Mapping[str, Any]]


class Read(Protocol[Row]):
    """Reads a page of a list."""

    async def __call__(self, conn: asyncpg.Connection, *, after: UUID | None, limit: int) -> Page[Row]: ...


def exported(shape: Any) -> Media:
    """What a list answers, for the document: a page of rows of this shape, or rows alone."""
    types: dict[str, Any] = dict.fromkeys(MEDIA_TYPES.values(), str)
    return Media(types | {MEDIA_TYPES[ExportFormat.JSON]: views.Page[shape]})


async def list_answer(
    request: web.Request, query: ListQuery, read: Read[Row], view: View[Row], shape: Any, *, name: str
) -> web.StreamResponse:
    """A page, or an export from `cursor` on to the end. `shape` is the TypedDict of what `view` makes.

    Raises 422 where a page is not found in time, and 503 where as many exports are under way as may be.
    """
    format = _wanted(request, query)  # noqa: A001
    if format is ExportFormat.JSON:
        async with searching(request) as conn:
            page = await read(conn, after=query.cursor, limit=query.limit)
        return page_answer(page, view)
    if "limit" in request.query:
        raise InvalidInput.of("limit", f"is for pages; {format} has all that matches")
    columns = [column for column in shape.__annotations__ if column not in shape.__optional_keys__]
    with _slot(request):
        return await _export(request, query, read, view, writer(format, columns, name=name), (name, format))


async def _export(
    request: web.Request,
    query: ListQuery,
    read: Read[Row],
    view: View[Row],
    written: Writer,
    named: tuple[str, ExportFormat],
) -> web.StreamResponse:
    parts = _parts(request, query.cursor, read, view, written)
    first = await anext(parts)  # an error is an answer until something was sent
    name, format = named  # noqa: A001
    headers = {
        "Content-Type": f"{MEDIA_TYPES[format]}; charset=utf-8",
        "Content-Disposition": f'attachment; filename="{name}.{format}"',
    }
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    if request.method == "HEAD":
        return response
    try:
        await _write(response, first)
        async for part in parts:
            await _write(response, part)
    except Exception as error:
        # After its beginning an answer cannot become an error.
        expected = isinstance(error, OSError | HookhareError | ApiError)
        log.warning("api.export_cut", list=name, error=str(error) or type(error).__name__, exc_info=not expected)
        if request.transport is not None:
            request.transport.abort()
    return response


async def _parts(
    request: web.Request, cursor: UUID | None, read: Read[Row], view: View[Row], written: Writer
) -> AsyncIterator[bytes]:
    """An export's bytes, a page at a time."""
    after, head = cursor, written.head
    while True:
        async with searching(request) as conn:
            if not await api_keys.is_live(conn, request[CALLER].key_id):
                raise unauthorized("the key was revoked or has expired")
            page = await read(conn, after=after, limit=MAX_PAGE)
        text = head + "".join(written.row(view(row)) for row in page.rows)
        head, after = "", page.next_after
        if after is None:
            yield (text + written.tail).encode()
            return
        yield text.encode()


async def _write(response: web.StreamResponse, part: bytes) -> None:
    """A part of megabytes may take a slow caller long: none of its slices may."""
    for start in range(0, len(part), LEAST_TAKEN_BYTES):
        async with asyncio.timeout(STALLED_S):
            await response.write(part[start : start + LEAST_TAKEN_BYTES])


def _wanted(request: web.Request, query: ListQuery) -> ExportFormat:
    """What `format` says, or Accept where it names one media type and no other."""
    if query.format is not None:
        return query.format
    media_type = request.headers.get("Accept", "").partition(";")[0].strip().lower()
    return _BY_MEDIA_TYPE.get(media_type, ExportFormat.JSON)


@contextmanager
def _slot(request: web.Request) -> Iterator[None]:
    """One of the exports that may be under way."""
    under_way, tenant = request.app[EXPORTS], request[CALLER].tenant
    if len(under_way) >= MAX_EXPORTS:
        raise too_many_exports(MAX_EXPORTS)
    if tenant is not None and under_way.count(tenant) >= MAX_OF_TENANT:
        raise too_many_exports(MAX_OF_TENANT)
    under_way.append(tenant)
    try:
        yield
    finally:
        under_way.remove(tenant)
