"""What happens around every request: its id, its log line, its key, and its error if it ends in one."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from time import perf_counter
from typing import Final

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from uuid_utils.compat import uuid7

from consumer_api.addresses import caller_address
from consumer_api.answers import error_answer
from consumer_api.caller import check_path, check_scope, unauthorized
from consumer_api.context import ADDRESS, CALLER, REQUEST_ID, SETTINGS, STANDING, STORE, Caller
from consumer_api.errors import ApiError, ErrorCode, Fault, fault_of, overloaded, rate_limited
from consumer_api.headers import secure, share
from consumer_api.rate_limits import RateLimits
from consumer_api.route import Handler, Route
from consumer_api.throttle import Throttle
from consumer_api.uses import Uses
from infra.store import api_keys
from infra.store.api_keys import ApiKeyRow
from schemas.ids import API_KEY, public_id

log = structlog.get_logger(__name__)

REQUEST_ID_HEADER: Final = "X-Request-Id"
KEY_HEADER: Final = "X-API-Key"
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/metrics"})

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")  # goes into logs and headers as it is
_BEARER: Final = re.compile(r"bearer +([^ ]+)", re.IGNORECASE)


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Outermost: the request's id, the caller's or a new one, and where it comes from; one log line; errors as JSON."""
    given = request.headers.get(REQUEST_ID_HEADER, "")
    request_id = given if _REQUEST_ID.fullmatch(given) else uuid7().hex
    request[REQUEST_ID] = request_id
    forwarded = request.headers.getall("X-Forwarded-For", ())
    request[ADDRESS] = caller_address(request.remote, forwarded, request.app[SETTINGS].trusted_proxies)
    began = perf_counter()
    response = await answered(request, handler)
    if request.path not in OPEN_PATHS:
        caller = request.get(CALLER)
        log.info(
            "api.request",
            method=request.method,
            route=_route(request),
            status=response.status,
            duration_ms=round((perf_counter() - began) * 1000, 1),
            request_id=request_id,
            address=request[ADDRESS],
            key=None if caller is None else public_id(API_KEY, caller.key_id),
        )
    return response


async def tell(request: web.Request, response: web.StreamResponse) -> None:
    """The headers of every answer, before its first byte: of one that is streamed, too."""
    secure(response)
    share(request, response)
    if (request_id := request.get(REQUEST_ID)) is not None:
        response.headers[REQUEST_ID_HEADER] = request_id
    if (standing := request.get(STANDING)) is not None:
        response.headers["X-RateLimit-Limit"] = str(standing.limit)
        response.headers["X-RateLimit-Remaining"] = str(standing.remaining)
        response.headers["X-RateLimit-Reset"] = str(standing.reset_s)


async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the handler answers, or the error that it ends in as JSON."""
    try:
        return await handler(request)
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            # With its traceback; the caller gets the request's id, to find it by.
            log.exception("api.unexpected", route=_route(request), request_id=request[REQUEST_ID])
            fault = Fault(500, ErrorCode.INTERNAL, "an error of ours; the log has it under the request_id")
        elif fault.status >= 500:
            log.warning("api.unavailable", code=fault.code, error=str(error), request_id=request[REQUEST_ID])
        return error_answer(fault, request_id=request[REQUEST_ID])


def bounded(most: int) -> Middleware:
    """At most so many requests under way, or their bodies would fill the memory. The probes always get through."""
    under_way = 0

    @web.middleware
    async def bound(request: web.Request, handler: Handler) -> web.StreamResponse:
        nonlocal under_way
        if request.path in OPEN_PATHS:
            return await handler(request)
        if under_way >= most:
            raise overloaded(most)
        under_way += 1
        try:
            return await handler(request)
        finally:
            under_way -= 1

    return bound


def authenticate(
    routes: Mapping[web.AbstractRoute, Route], uses: Uses, limits: RateLimits, throttle: Throttle
) -> Middleware:
    """A key for everything but the probes; one that has requests left, the route's scope, and whose tenant's is what
    the path names.

    The key is asked of the database each time: a revoked one ends at once.
    """

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = routes.get(request.match_info.route)
        if route is None and not request.path.startswith("/v1/"):
            return await handler(request)  # which is a 404 or a 405
        if route is not None and route.scope is None:
            return await handler(request)
        row = await _key_of(request, throttle)
        request[CALLER] = Caller(row.id, row.tenant, row.known_scopes)
        uses.count(row.id, datetime.now(UTC))
        await _count(request, limits, row)
        if route is not None and route.scope is not None:
            check_scope(request, route.scope, admin=route.admin)
            if row.tenant is not None and request.match_info:
                async with request.app[STORE].connection() as conn:
                    await check_path(request, conn)
        if route is not None and route.largest_body is not None:
            request = request.clone(client_max_size=route.largest_body(request.app[SETTINGS]))
        return await handler(request)

    return check


async def _count(request: web.Request, limits: RateLimits, row: ApiKeyRow) -> None:
    """Count a request against its key's limit. Raises 429 when there is none left."""
    limit = row.rate_per_min or request.app[SETTINGS].key_requests_per_min
    counted, standing = await limits.count(row.id, limit)
    request[STANDING] = standing
    if not counted:
        message = f"the key has made the {limit} requests that it may make in a minute; nothing was done"
        raise rate_limited(message, retry_after_s=standing.reset_s)


async def _key_of(request: web.Request, throttle: Throttle) -> ApiKeyRow:
    """The key that a request came with. Raises 401 for none, and 429 when its address sent too many that are none."""
    key, address = _given_key(request), request[ADDRESS]
    if key is None:
        raise unauthorized(f"send a key as `Authorization: Bearer {api_keys.PREFIX}…`, or in {KEY_HEADER}")
    if (wait_s := throttle.wait_s(address, key)) is not None:
        raise rate_limited("too many wrong keys came from this address; nothing was done", retry_after_s=wait_s)
    async with request.app[STORE].connection() as conn:
        row = await api_keys.find(conn, key)
    if row is None:
        throttle.failed(address, key)
        raise unauthorized("the key is unknown, was revoked or has expired")
    throttle.passed(key)
    return row


def _given_key(request: web.Request) -> str | None:
    """The key in either header. Raises 400 for two that differ: which one is meant cannot be known.

    An Authorization of another kind is not for us: a proxy in front of the API may have one of its own.
    """
    bearers = [_BEARER.fullmatch(value) for value in request.headers.getall("Authorization", ())]
    given = {bearer[1] for bearer in bearers if bearer} | set(request.headers.getall(KEY_HEADER, ()))
    given.discard("")  # of a header that a client has and does not fill
    if len(given) > 1:
        message = f"more than one key was sent: send one, as `Authorization: Bearer …` or in {KEY_HEADER}"
        raise ApiError(Fault(400, ErrorCode.INVALID_REQUEST, message))
    return given.pop() if given else None


def _route(request: web.Request) -> str:
    """The route's template: a path as it came could be anything, and one line for each id."""
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical
