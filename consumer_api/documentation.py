"""`/openapi.json` and `/docs`: the API's document, and a page that shows it.

Both are told without a key: they hold nothing of an installation's data, and who has no key yet, or only tools that
send none, reads them first. The page is made of files that come with Hookhare; nothing is fetched from elsewhere.
"""

import asyncio
import hashlib
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import orjson
import structlog
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from consumer_api.errors import not_found
from consumer_api.openapi import make_document
from consumer_api.route import Media, Route

log = structlog.get_logger(__name__)

FILE_S: Final = 60.0
_FOLDER: Final = Path(__file__).parent / "static" / "swagger"
_PAGE: Final = "index.html"
# By name, and so nothing else of the disk is ever served.
_FILES: Final = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "initialize.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
_CONDITIONS: Final = ("If-None-Match", "If-Modified-Since")
# Only what is served from here; the style sheet has small pictures in data: URLs.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and answered by 304
}


class Document:
    """The document of an application's routes, made when it is first asked for."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes = routes

    @cached_property
    def body(self) -> bytes:
        """The document as JSON."""
        return orjson.dumps(make_document(self._routes, version=version("hookhare")))

    @cached_property
    def etag(self) -> str:
        """What tells this document from others, without the quotes."""
        return hashlib.sha256(self.body).hexdigest()[:32]


DOCUMENT: Final = web.AppKey("document", Document)


def routes() -> list[Route]:
    page = {200: Media({"text/html": str}), 304: None}
    files = {200: Media(dict.fromkeys(sorted(set(_FILES.values())), str)), 304: None}
    described = {200: dict[str, Any], 304: None}
    return [
        Route(method="GET", path="/openapi.json", handler=document, scope=None, answers=described),
        Route(method="GET", path="/docs", handler=docs, scope=None, answers=page),
        Route(method="GET", path="/docs/{file}", handler=docs_file, scope=None, answers=files),
    ]


async def document(request: web.Request) -> web.Response:
    """Get this document."""
    made = request.app[DOCUMENT]
    given = request.if_none_match or ()
    unchanged = any(etag.value in {made.etag, "*"} for etag in given)
    response = web.Response(status=304) if unchanged else web.Response(body=made.body, content_type="application/json")
    response.etag = made.etag
    response.headers["Cache-Control"] = _HEADERS["Cache-Control"]
    return response


async def docs(_: web.Request) -> web.FileResponse:
    """A page that shows this document, and sends requests by it."""
    return _served(_PAGE, "text/html")


async def docs_file(request: web.Request) -> web.FileResponse:
    """One of the files that the page is made of."""
    name = request.match_info["file"]
    if name not in _FILES:
        raise not_found("file")
    return _served(name, _FILES[name])


class _File(web.FileResponse):
    """A file that is sent whole, within a time: nobody else sees it stand still, as it goes straight to the socket.

    Conditions but for "is it still the same" are not looked at: aiohttp answers those that fail without a body.
    """

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        kept = {name: request.headers.get(name, "") for name in _CONDITIONS}
        kept = {name: value for name, value in kept.items() if value and value.isascii()}
        try:
            async with asyncio.timeout(FILE_S):
                return await super().prepare(request.clone(headers=kept))
        except TimeoutError:
            log.info("api.connection_cut", reason="a file was not taken", address=request.remote)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the file was not taken in time") from None


def _served(name: str, media: str) -> web.FileResponse:
    return _File(_FOLDER / name, headers=_HEADERS | {"Content-Type": media})
