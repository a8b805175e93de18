"""Reads that may have to look at many rows: how long they may, and how many at once.

They have half of the connections. Else one tenant's searches, of a few seconds each, would have everybody's keys wait
to be looked up, and events to be published.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from aiohttp import web

from consumer_api.context import SEARCHES, STORE
from consumer_api.errors import ApiError, ErrorCode, Fault, too_many_searches
from schemas.errors import StoreUnavailable

SEARCH_TIMEOUT_MS: Final = 3000


@asynccontextmanager
async def searching(
    request: web.Request, *, narrow_by: str = "created_after and created_before, or by subscription_id"
) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose statements are ended after a while; who asked is told to narrow the search.

    Raises 503 when others search for as long.
    """
    places = request.app[SEARCHES]
    try:
        async with asyncio.timeout(SEARCH_TIMEOUT_MS / 1000):
            await places.acquire()
    except TimeoutError:
        raise too_many_searches() from None
    try:
        async with request.app[STORE].transaction() as conn:
            await conn.execute(f"SET LOCAL statement_timeout = {SEARCH_TIMEOUT_MS}")
            yield conn
    except StoreUnavailable as error:
        if not isinstance(error.__cause__, asyncpg.QueryCanceledError):
            raise
        message = f"what was asked for was not found within {SEARCH_TIMEOUT_MS} ms: narrow it by {narrow_by}"
        raise ApiError(Fault(422, ErrorCode.QUERY_TOO_BROAD, message)) from None
    finally:
        places.release()
