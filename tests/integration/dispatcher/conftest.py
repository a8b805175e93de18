"""A store with a seed, and the parts of a dispatcher that the rules are about."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import cast

import pytest

from dispatcher.claims import Claims
from dispatcher.core.streak import Thresholds
from dispatcher.heartbeat import Heartbeat
from dispatcher.hints import Hints
from dispatcher.index import SubscriptionIndex
from dispatcher.lanes import Lanes
from dispatcher.settlement import Settlement
from dispatcher.streaks import Streaks
from infra.broker.base import Broker
from infra.settings import Settings, read_settings
from infra.store.store import Store
from infra.telemetry import Telemetry, open_telemetry
from tests.integration.dispatcher.times import TIMES
from tests.support.seed import Seed
from tests.support.silent_broker import SilentBroker


@pytest.fixture
def seed(store: Store) -> Seed:
    return Seed(store)


@pytest.fixture
async def heartbeat(store: Store) -> Heartbeat:
    return await Heartbeat(store, TIMES).start()


@pytest.fixture
def index(seed: Seed) -> SubscriptionIndex:
    return SubscriptionIndex(seed.vault, origin="hookhare.example")


@pytest.fixture
def claims(store: Store, index: SubscriptionIndex, heartbeat: Heartbeat) -> Claims:
    return Claims(store, index, heartbeat)


@pytest.fixture
def settings() -> Settings:
    return read_settings(database_timeout_s=2, reconcile_grace_s=30)


@pytest.fixture
def telemetry(settings: Settings) -> Iterator[Telemetry]:
    with open_telemetry(settings, "test") as opened:
        yield opened


@pytest.fixture
def broker() -> SilentBroker:
    return SilentBroker()


@pytest.fixture
def hints(broker: SilentBroker, store: Store, telemetry: Telemetry) -> Hints:
    return Hints(cast(Broker, broker), store, telemetry, timeout_s=2, batch_rows=100)


@pytest.fixture
def lanes() -> Lanes:
    return Lanes(max_in_hand=1000, max_in_hand_bytes=10_000_000, endpoint_max_in_flight=8, first_in_flight=8)


@pytest.fixture
async def streaks(store: Store) -> AsyncIterator[Streaks]:
    """Told at 3 failures, disabling at 5, whenever they come."""
    streaks = Streaks(store, Thresholds(3, 0, 5, 0), period_s=0.05)
    running = asyncio.create_task(streaks.run())
    yield streaks
    streaks.stop()
    await running


@pytest.fixture
async def settlement(
    store: Store, lanes: Lanes, hints: Hints, streaks: Streaks, telemetry: Telemetry, heartbeat: Heartbeat
) -> AsyncIterator[Settlement]:
    settlement = Settlement(store, lanes, hints, streaks, telemetry, incarnation=heartbeat.incarnation, batch_rows=100)
    running = asyncio.create_task(settlement.run())
    yield settlement
    settlement.stop()
    await running
    await hints.finish(limit_s=5)
