"""A dispatcher's own small server: `/healthz`, `/readyz` and `/metrics`."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from dispatcher.heartbeat import Heartbeat
from infra.broker.base import Broker
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.errors import ConfigurationError, HookhareError

_Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def serve_health(
    *,
    host: str,
    port: int,
    store: Store,
    broker: Broker,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
    timeout_s: float,
) -> AsyncIterator[int]:
    """Serve until exit; yields the port. Raises ConfigurationError when the port is taken."""

    async def alive(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(_: web.Request) -> web.Response:
        checks = {
            "heartbeat": "ok" if heartbeat.is_fresh() else "lapsed",
            "store": await _ask(store.check),
            "broker": await _ask(lambda: broker.check(timeout_s=timeout_s)),
        }
        healthy = all(answer == "ok" for answer in checks.values())
        return web.json_response(checks, status=200 if healthy else 503)

    async def metrics(_: web.Request) -> web.Response:
        body, content_type = telemetry.render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes([web.get("/healthz", alive), web.get("/readyz", ready), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(f"HOOKHARE_DISPATCHER_PORT: cannot listen on {host}:{port}: {error}") from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _ask(check: Callable[[], Awaitable[None]]) -> str:
    try:
        await check()
    except HookhareError as error:
        return type(error).__name__  # the message may name hosts; the log has it
    return "ok"
