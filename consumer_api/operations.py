"""`/healthz`, `/readyz` and `/metrics`: for probes and scrapers, without a key, and without anything worth one."""

import asyncio
from collections.abc import Awaitable
from typing import Final

import structlog
from aiohttp import web

from consumer_api.answers import json_answer
from consumer_api.context import BROKER, STORE, TELEMETRY
from consumer_api.route import Media, Route
from consumer_api.views import AliveView, ReadyView
from schemas.errors import HookhareError

log = structlog.get_logger(__name__)

_CHECK_TIMEOUT_S: Final = 3.0


def routes() -> list[Route]:
    return [
        Route(method="GET", path="/healthz", handler=alive, scope=None, answers={200: AliveView}),
        Route(method="GET", path="/readyz", handler=ready, scope=None, answers={200: ReadyView, 503: ReadyView}),
        Route(method="GET", path="/metrics", handler=metrics, scope=None, answers={200: Media({"text/plain": str})}),
    ]


async def alive(_: web.Request) -> web.Response:
    """Whether the process answers, which is 200."""
    return json_answer({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Whether it is ready: 200 when the broker takes messages and this code fits the database's schema, else 503."""
    broker, store = await asyncio.gather(
        _ask("broker", request.app[BROKER].check(timeout_s=_CHECK_TIMEOUT_S)),
        _ask("store", request.app[STORE].check()),
    )
    healthy = broker == store == "ok"
    return json_answer({"broker": broker, "store": store}, status=200 if healthy else 503)


async def metrics(request: web.Request) -> web.Response:
    """The numbers of this process, in the text format of Prometheus."""
    body, content_type = request.app[TELEMETRY].render()
    return web.Response(body=body, headers={"Content-Type": content_type})


async def _ask(part: str, check: Awaitable[None]) -> str:
    """`ok`, or the kind of error. Its message, which may name hosts, is for the log."""
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S + 0.5):
            await check
    except HookhareError as error:
        log.warning("api.not_ready", part=part, error=str(error))
        return type(error).__name__
    except TimeoutError:
        log.warning("api.not_ready", part=part, error="no answer in time")
        return "Timeout"
    return "ok"
