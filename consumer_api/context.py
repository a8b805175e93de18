"""What the handlers work with, under typed keys of the application and of the request."""

import asyncio
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from aiohttp import web

from infra.broker.base import Broker
from infra.crypto import Vault
from infra.early_check import EarlyCheck
from infra.settings import Settings
from infra.store.catalogue import Catalogue
from infra.store.idempotency import Claimed
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.scopes import Scope


@dataclass(frozen=True, slots=True)
class Caller:
    """The key that a request came with; `tenant` is None for an admin key."""

    key_id: UUID
    tenant: str | None
    scopes: AbstractSet[Scope]


@dataclass(frozen=True, slots=True)
class Trials:
    """Places for those who wait for the attempt at a test event, and what ends every wait."""

    places: asyncio.Semaphore
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def stop(self, _: web.Application) -> None:
        self.stopping.set()


@dataclass(frozen=True, slots=True)
class Standing:
    """How a key stands with its rate limit: of `limit` requests `remaining` in the `reset_s` seconds to come."""

    limit: int
    remaining: int
    reset_s: int


STORE: Final = web.AppKey("store", Store)
BROKER: Final = web.AppKey[Broker]("broker")
CATALOGUE: Final = web.AppKey("catalogue", Catalogue)
BROKER_SYSTEM: Final = web.AppKey("broker_system", str)  # its name in traces
VAULT: Final = web.AppKey("vault", Vault)
EARLY_CHECK: Final = web.AppKey("early_check", EarlyCheck)
TRIALS: Final = web.AppKey("trials", Trials)
SETTINGS: Final = web.AppKey("settings", Settings)
TELEMETRY: Final = web.AppKey("telemetry", Telemetry)

EXPORTS: Final = web.AppKey[list[str | None]]("exports")  # whose are under way: the tenants; None for an admin key's

SEARCHES: Final = web.AppKey("searches", asyncio.Semaphore)  # places for those under way

REQUEST_ID: Final = web.RequestKey("request_id", str)
ADDRESS: Final = web.RequestKey("address", str)  # that the request comes from, as consumer_api/addresses.py has it
CALLER: Final = web.RequestKey("caller", Caller)
STANDING: Final = web.RequestKey("standing", Standing)
CLAIMED: Final = web.RequestKey("claimed", Claimed)  # of a request that is done once
NOT_SETTLED: Final = web.RequestKey("not_settled", bool)  # true: part of it is to be asked again
