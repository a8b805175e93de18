"""`Idempotency-Key`: a POST that creates is done once, however often it is sent.

Scoped to the API key and the route. The answer is kept (encrypted, since it may show a secret) and given again. One
that may be another the next time is not (409, 422, 429, 5xx), and then the next request with the key does it.

A process that dies leaves its request released after `IN_FLIGHT_S`. What it did is not done twice all the same: `keep`
stores an answer in the transaction of what it tells of, and ids that `fresh_id` makes are the same each time, so that
an event which is published again is a duplicate.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Final
from uuid import uuid5

import asyncpg
import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from uuid_utils.compat import uuid7

from consumer_api.context import CALLER, CLAIMED, NOT_SETTLED, SETTINGS, STORE, VAULT
from consumer_api.errors import RETRY_AFTER_S, ApiError, ErrorCode, Fault, conflict
from consumer_api.middleware import answered
from consumer_api.reading import read_body
from consumer_api.route import Handler, Route
from infra.crypto import Vault
from infra.store import idempotency
from infra.store.idempotency import Asked, Before, Claimed
from schemas.errors import InvalidInput, SecretUnreadable, StoreError

log = structlog.get_logger(__name__)

KEY_HEADER: Final = "Idempotency-Key"
REPLAYED_HEADER: Final = "Idempotency-Replayed"
MAX_ANSWER_BYTES: Final = 2_097_152  # a larger one is not kept

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_KEPT_HEADERS: Final = ("Content-Type", "Location", "ETag")
_NOT_FOR_GOOD: Final = frozenset({409, 422, 429})  # what stands in the way may be gone the next time


def fresh_id(request: web.Request, number: int = 0) -> str:
    """An id for the request's event of this number; of a request with an Idempotency-Key, the same each time."""
    claimed = request.get(CLAIMED)
    return str(uuid7()) if claimed is None else str(uuid5(claimed.seed, str(number)))


async def keep(request: web.Request, conn: asyncpg.Connection, answer: web.Response) -> web.Response:
    """The answer, kept if the request is to be done once. Last in the transaction of what it tells of: both or none.

    Raises 409 where the request took so long that it was released, and is somebody else's to do by now.
    """
    claimed = request.get(CLAIMED)
    if claimed is not None and not await idempotency.finish(conn, claimed, _kept(request, answer)):
        raise _in_flight()
    return answer


def once(routes: Mapping[web.AbstractRoute, Route]) -> Middleware:
    """Does a request with the header once. After authentication, since a key of the header is an API key's own."""

    @web.middleware
    async def do_once(request: web.Request, handler: Handler) -> web.StreamResponse:
        route, keys = routes.get(request.match_info.route), request.headers.getall(KEY_HEADER, ())
        if route is None or not route.idempotent or not keys:
            return await handler(request)
        key = keys[0]
        if len(keys) > 1 or not _KEY.fullmatch(key):
            raise InvalidInput.of(KEY_HEADER, "must be given once, and be 1 to 255 visible ASCII characters")
        said = b"%b\n%b" % (request.rel_url.raw_path_qs.encode(), await read_body(request))
        digest = hashlib.sha256(said).digest()
        asked = Asked(request[CALLER].key_id, f"{route.method} {route.path}", key, digest)
        lifetime_s = request.app[SETTINGS].idempotency_s
        async with request.app[STORE].transaction() as conn:
            found = await idempotency.claim(conn, asked, lifetime_s=lifetime_s)
        if isinstance(found, Before):
            return _again(request.app[VAULT], found)
        request[CLAIMED] = found
        response = await answered(request, handler)
        await _finish(request, found, response)
        return response

    return do_once


def _again(vault: Vault, before: Before) -> web.Response:
    if not before.same:
        message = f"{KEY_HEADER}: was used for another request; a new request needs a new key"
        raise ApiError(Fault(422, ErrorCode.IDEMPOTENCY_MISMATCH, message))
    if before.answer is None:
        raise _in_flight()
    try:
        head, _, body = vault.decrypt(before.answer).partition(b"\n")
    except SecretUnreadable:
        raise conflict("the request with this key was done; its answer cannot be decrypted any more") from None
    status, headers = orjson.loads(head)
    return web.Response(status=status, headers=headers | {REPLAYED_HEADER: "true"}, body=body)


def _in_flight() -> ApiError:
    message = "the request with this key is under way"
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return ApiError(Fault(409, ErrorCode.IDEMPOTENCY_IN_FLIGHT, message, headers=headers))


async def _finish(request: web.Request, claimed: Claimed, response: web.StreamResponse) -> None:
    """Keep the answer, where the handler has not, or release the request.

    Where the database is away just now, it stays in flight for a while.
    """
    try:
        async with request.app[STORE].transaction() as conn:
            await idempotency.finish(conn, claimed, _kept(request, response))
    except StoreError as error:
        log.warning("idempotency.not_kept", error=str(error))


def _kept(request: web.Request, response: web.StreamResponse) -> bytes | None:
    body = response.body if isinstance(response, web.Response) else None
    if not isinstance(body, bytes) or len(body) > MAX_ANSWER_BYTES:
        return None
    if response.status >= 500 or response.status in _NOT_FOR_GOOD or request.get(NOT_SETTLED, False):
        return None
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return request.app[VAULT].encrypt(orjson.dumps([response.status, headers]) + b"\n" + body)
