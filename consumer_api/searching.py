"""Reads that may have to look at many rows, and how long they may."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
from aiohttp import web

from consumer_api.context import STORE
from consumer_api.errors import ApiError, ErrorCode, Fault
from schemas.errors import StoreUnavailable

SEARCH_TIMEOUT_MS: Final = 3000


@asynccontextmanager
async def searching(
    request: web.Request, *, narrow_by: str = "created_after and created_before, or by subscription_id"
) -> AsyncIterator[asyncpg.Connection]:
    """A connection whose statements are ended after a while; who asked is told to narrow the search."""
    try:
        async with request.app[STORE].transaction() as conn:
            await conn.execute(f"SET LOCAL statement_timeout = {SEARCH_TIMEOUT_MS}")
            yield conn
    except StoreUnavailable as error:
        if not isinstance(error.__cause__, asyncpg.QueryCanceledError):
            raise
        message = f"what was asked for was not found within {SEARCH_TIMEOUT_MS} ms: narrow it by {narrow_by}"
        raise ApiError(Fault(422, ErrorCode.QUERY_TOO_BROAD, message)) from None
