"""A route, declared: what it is called by, who may call it, what it reads and what it answers.

One declaration serves the router, the check of the caller's scope and of what the ids in its path belong to, and the
OpenAPI document. So there is no route without a scope, and none that the document does not know.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from consumer_api.errors import ErrorCode
from infra.settings import Settings
from schemas.scopes import Scope

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Media:
    """The body of an answer that is not only JSON: by media type, the type of what is written in it."""

    types: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Route:
    """One method of one path.

    `scope` is what a key must have; None is for probes, which nobody needs a key for. `admin` is true where only a key
    of no tenant may call it. `answers` has for each status of success the type of its body (a TypedDict of
    typing_extensions, a `Media`, or None for no body), `errors` the codes beyond those of every route like it.
    `idempotent` is true where a request with an `Idempotency-Key` is done once.
    `operation` is its name in the document, where its path alone gives one that another has.
    `largest_body` is how many bytes its body may have, where that is not what it is for most routes.
    """

    method: str
    path: str
    handler: Handler
    scope: Scope | None
    admin: bool = False
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    body_optional: bool = False
    answers: Mapping[int, Any] = field(default_factory=dict)
    errors: tuple[ErrorCode, ...] = ()
    idempotent: bool = False
    operation: str | None = None
    largest_body: Callable[[Settings], int] | None = None


def add_routes(app: web.Application, routes: list[Route]) -> dict[web.AbstractRoute, Route]:
    """Put routes into the application's router; GET answers HEAD too."""
    added = {}
    for route in routes:
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            added[app.router.add_route(method, route.path, route.handler)] = route
    return added
