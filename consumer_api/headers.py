"""The headers of every answer: what browsers may make of it, and who may read it from a page of theirs (CORS).

Answers are data of an API, so they say: take me for nothing else, keep me nowhere, show me in no frame. A handler that
says otherwise itself, as the page at /docs does, is not overruled. HSTS is left to whoever ends TLS in front.

CORS is off unless `api_cors_origins` is set. It never allows credentials: the page sends a key, not the browser.
"""

from collections.abc import Sequence
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware

from consumer_api.context import SETTINGS
from consumer_api.route import Handler

SECURITY: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Server": "hookhare",  # and not which versions of what it is made of
}
EVERY_ORIGIN: Final = "*"
EXPOSED: Final = (
    *("X-Request-Id", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"),
    *("ETag", "Location", "Idempotency-Replayed"),
)
SENT: Final = ("Authorization", "Content-Type", "Idempotency-Key", "If-Match", "X-API-Key", "X-Request-Id")
METHODS: Final = ("GET", "HEAD", "POST", "PATCH", "DELETE")
PREFLIGHT_S: Final = 600  # for which a browser need not ask again

_NOT_FOR_PAGES: Final = frozenset({"/healthz", "/readyz", "/metrics"})


def secure(response: web.StreamResponse) -> None:
    """Set what the handler has not set itself."""
    for name, value in SECURITY.items():
        if name == "Server" or name not in response.headers:  # aiohttp has set its own
            response.headers[name] = value


def share(request: web.Request, response: web.StreamResponse) -> None:
    """Say to the browser whether the page that asked may read this answer."""
    allowed = request.app[SETTINGS].api_cors_origins
    if not allowed or request.path in _NOT_FOR_PAGES:
        return
    if EVERY_ORIGIN not in allowed:
        response.headers.add(hdrs.VARY, hdrs.ORIGIN)
    if (origin := _allowed(request, allowed)) is not None:
        response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
        response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = ", ".join(EXPOSED)


def preflights(allowed: Sequence[str]) -> Middleware:
    """Answers what a browser asks before it sends a page's request. It sends no key with that, so it takes none."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        asked = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        if not asked or request.path in _NOT_FOR_PAGES or _allowed(request, allowed) is None:
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(METHODS),
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: ", ".join(SENT),
                hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_S),
            },
        )

    return answer


def _allowed(request: web.Request, allowed: Sequence[str]) -> str | None:
    """What Access-Control-Allow-Origin says to this request; None for a page that may not read the answer."""
    if EVERY_ORIGIN in allowed:
        return EVERY_ORIGIN
    origin = request.headers.get(hdrs.ORIGIN)
    return origin if origin in allowed else None
