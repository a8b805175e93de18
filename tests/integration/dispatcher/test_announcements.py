"""Announcements: what the outbox says goes to the bus, as the same event however often, and then from the outbox."""

from datetime import UTC, datetime
from typing import cast

import pytest

from dispatcher.announcements import Announcements
from infra.broker.base import Broker, ToEvents
from infra.settings import Settings
from infra.store.store import Store
from schemas.events import Event, read_event
from schemas.ids import SUBSCRIPTION, key_ms, public_id
from tests.support.seed import Seed
from tests.support.silent_broker import SilentBroker


@pytest.fixture
def announcements(broker: SilentBroker, store: Store, settings: Settings) -> Announcements:
    return Announcements(cast(Broker, broker), store, settings)


def read(broker: SilentBroker) -> list[Event]:
    events = []
    for sent in broker.sent:
        event = read_event(sent.message, now=datetime.now(UTC), fresh_id="fresh", max_bytes=262_144)
        assert isinstance(event, Event)
        assert sent.to == ToEvents(event.type)
        events.append(event)
    return events


async def outbox(store: Store) -> int:
    async with store.connection() as conn:
        return int(await conn.fetchval("SELECT count(*) FROM operational_events"))


async def test_what_is_published_is_an_event_that_its_row_alone_says(
    announcements: Announcements, broker: SilentBroker, seed: Seed, store: Store
) -> None:
    key = await seed.subscription("hookhare.#")
    async with store.connection() as conn:
        row = await conn.fetchrow("SELECT * FROM operational_events")
    assert row is not None
    assert await announcements.publish() == (1, False)
    (event,) = read(broker)
    assert (event.type, event.tenant, event.source) == ("hookhare.subscription.created", "default", "hookhare")
    assert (event.external_id, event.accepted_ms) == (str(row["id"]), key_ms(row["id"]))
    assert (event.time, event.subject) == (row["created_at"], public_id(SUBSCRIPTION, key))
    assert public_id(SUBSCRIPTION, key).encode() in event.data
    assert str(key).encode() not in event.data
    assert await outbox(store) == 0
    assert await announcements.publish() == (0, False)


async def test_what_the_broker_does_not_take_stays_and_is_the_same_event_later(
    announcements: Announcements, broker: SilentBroker, seed: Seed, store: Store
) -> None:
    await seed.subscription("hookhare.#")
    broker.refuses = True
    assert await announcements.publish() == (1, True)
    assert await outbox(store) == 1
    broker.refuses = False
    # Confirmed, and not deleted: the transaction is lost.
    async with store.connection() as conn:
        await conn.execute("CREATE TABLE kept AS SELECT * FROM operational_events")
    await announcements.publish()
    async with store.connection() as conn:
        await conn.execute("INSERT INTO operational_events SELECT * FROM kept")
    await announcements.publish()
    one, again = read(broker)
    assert one == again
