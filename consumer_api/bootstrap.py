"""Wires the API by hand and serves it until it is told to stop, then lets the requests under way finish."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from aiohttp import web

from consumer_api import connections
from consumer_api.app import make_app
from consumer_api.connections import BoundedRunner
from infra.broker.open import open_broker
from infra.crypto import Vault
from infra.early_check import open_early_check
from infra.settings import Settings
from infra.store.store import open_store
from infra.telemetry import open_telemetry
from schemas.errors import ConfigurationError

log = structlog.get_logger(__name__)

_SHUTDOWN_S: Final = 20.0  # for requests under way; a publish waits for its confirm for 10 s at most by default
_LINGERING_S: Final = 2.0  # for what a caller still sends after its answer: the rest of a body that is too large


@dataclass(frozen=True, slots=True)
class RunningApi:
    """Where the API listens; `port` is the one that was taken when the setting is 0."""

    host: str
    port: int


@asynccontextmanager
async def open_api(settings: Settings) -> AsyncIterator[RunningApi]:
    """The API, listening until exit.

    When it cannot start it raises ConfigurationError (no encryption key, no database URL, the port is taken),
    StoreUnavailable, SchemaMismatch or BrokerError.
    """
    vault = Vault.from_settings(settings)
    async with AsyncExitStack() as stack:
        telemetry = stack.enter_context(open_telemetry(settings, "hookhare-api"))
        store = await stack.enter_async_context(open_store(settings))
        await store.check_schema()
        broker = await stack.enter_async_context(open_broker(settings))
        early_check = await stack.enter_async_context(open_early_check(settings))
        app = make_app(
            settings=settings, store=store, broker=broker, vault=vault, early_check=early_check, telemetry=telemetry
        )
        port = await stack.enter_async_context(_listening(app, settings))
        log.info("api.started", host=settings.api_host, port=port)
        yield RunningApi(settings.api_host, port)
        log.info("api.stopping")


@asynccontextmanager
async def _listening(app: web.Application, settings: Settings) -> AsyncIterator[int]:
    runner = BoundedRunner(
        app,
        most=settings.api_max_connections,
        access_log=None,  # the middleware writes one line a request, without paths and queries as they came
        handle_signals=False,
        shutdown_timeout=_SHUTDOWN_S,
        keepalive_timeout=connections.KEEPALIVE_S,
        lingering_time=_LINGERING_S,
        max_line_size=connections.MAX_LINE_BYTES,
        max_field_size=connections.MAX_LINE_BYTES,
        max_headers=connections.MAX_HEADERS,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.api_host, settings.api_port)
        try:
            await site.start()
        except OSError as error:
            where = f"{settings.api_host}:{settings.api_port}"
            raise ConfigurationError(
                f"HOOKHARE_API_HOST, HOOKHARE_API_PORT: cannot listen on {where}: {error}"
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
