"""The aiohttp application: parts, middlewares, routes."""

import asyncio
from typing import Final

from aiohttp import web

from consumer_api import (
    attempts,
    audit_log,
    bulk_deliveries,
    dead_letters,
    deliveries,
    documentation,
    event_actions,
    event_batches,
    event_types,
    events,
    keys,
    operations,
    preview,
    replays,
    secrets,
    states,
    stats,
    subscriptions,
    trials,
)
from consumer_api.context import (
    BROKER,
    BROKER_SYSTEM,
    CATALOGUE,
    EARLY_CHECK,
    EXPORTS,
    SEARCHES,
    SETTINGS,
    STORE,
    TELEMETRY,
    TRIALS,
    VAULT,
    Trials,
)
from consumer_api.documentation import DOCUMENT, Document
from consumer_api.headers import preflights
from consumer_api.idempotency import once
from consumer_api.middleware import authenticate, bounded, identify, tell
from consumer_api.rate_limits import RateLimits
from consumer_api.route import Route, add_routes
from consumer_api.throttle import Throttle
from consumer_api.uses import Uses
from infra.broker.base import Broker
from infra.broker.open import messaging_system
from infra.crypto import Vault
from infra.early_check import EarlyCheck
from infra.settings import Settings
from infra.store.catalogue import Catalogue
from infra.store.store import Store
from infra.telemetry import Telemetry

# Around the data of an event, or for everything else: a subscription at all its limits is below 110 KiB.
_ENVELOPE_BYTES: Final = 131_072


def make_app(
    *, settings: Settings, store: Store, broker: Broker, vault: Vault, early_check: EarlyCheck, telemetry: Telemetry
) -> web.Application:
    added: dict[web.AbstractRoute, Route] = {}
    uses, limits, throttle = Uses(store), RateLimits(store), Throttle(settings.auth_failures_per_min)
    app = web.Application(
        middlewares=[
            identify,
            preflights(settings.api_cors_origins),
            bounded(settings.api_max_requests),
            authenticate(added, uses, limits, throttle),
            once(added),
        ],
        client_max_size=settings.max_event_bytes + _ENVELOPE_BYTES,
    )
    app.on_response_prepare.append(tell)
    app.cleanup_ctx.extend([uses.written, limits.closed])
    app[SETTINGS] = settings
    app[STORE] = store
    app[TRIALS] = Trials(asyncio.Semaphore(trials.MOST_WAITING))
    app.on_shutdown.append(app[TRIALS].stop)
    app[BROKER] = broker
    app[CATALOGUE] = Catalogue(settings)
    app[BROKER_SYSTEM] = messaging_system(settings)
    app[VAULT] = vault
    app[EARLY_CHECK] = early_check
    app[TELEMETRY] = telemetry
    app[EXPORTS] = []
    app[SEARCHES] = asyncio.Semaphore(max(1, settings.database_pool // 2))
    routes = all_routes()
    app[DOCUMENT] = Document(routes)
    added |= add_routes(app, routes)
    return app


def all_routes() -> list[Route]:
    """Every route that there is."""
    resources = (
        operations,
        documentation,
        subscriptions,
        preview,
        secrets,
        trials,
        states,
        stats,
        events,
        event_batches,
        event_actions,
        bulk_deliveries,
        event_types,
        deliveries,
        attempts,
        dead_letters,
        replays,
        keys,
        audit_log,
    )
    return [route for resource in resources for route in resource.routes()]
