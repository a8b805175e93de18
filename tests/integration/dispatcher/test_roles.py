"""Admission in order: who has the role, and that nobody else admits. Each clause taken away in turn."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from dispatcher.admission import Admission, GivenBack
from dispatcher.admission_in_order import admit_in_order
from dispatcher.burial import Burials
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import SubscriptionIndex
from dispatcher.lanes import Lanes
from dispatcher.roles import Name, Role, RoleLost
from infra.broker.base import Broker, Queue, Received
from infra.settings import Settings
from infra.store import statements as sql
from infra.store import upkeep
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.messages import Message
from tests.integration.dispatcher.times import TIMES
from tests.support.seed import Seed
from tests.support.silent_broker import SilentBroker
from tests.support.waiting import eventually

LIVENESS_S = TIMES.liveness_s


@pytest.fixture
def role(store: Store, heartbeat: Heartbeat) -> Role:
    return Role(Name.ADMISSION, store, heartbeat)


async def holder(store: Store) -> UUID | None:
    async with store.connection() as connection:
        found: UUID | None = await connection.fetchval("SELECT holder FROM roles WHERE name = 'admission'")
        return found


async def hand_to(store: Store, incarnation: UUID | None) -> None:
    async with store.connection() as connection:
        await connection.execute("UPDATE roles SET holder = $1", incarnation)


async def test_one_has_it_at_a_time_and_the_next_one_waits(
    store: Store, role: Role, heartbeat: Heartbeat, seed: Seed
) -> None:
    other = await seed.dispatcher()
    await hand_to(store, other)
    taking = asyncio.create_task(role.take())
    await asyncio.wait({taking}, timeout=2 * TIMES.heartbeat_s)
    assert not taking.done()
    assert await holder(store) == other
    await hand_to(store, None)
    await taking
    assert await holder(store) == heartbeat.incarnation
    await role.give_up()
    assert await holder(store) is None


async def test_who_lapsed_does_not_take_it(store: Store, heartbeat: Heartbeat) -> None:
    async with store.connection() as connection:
        await connection.execute("UPDATE dispatchers SET renewed_at = renewed_at - interval '1 hour'")
        assert not await connection.fetchval(sql.TAKE_ROLE, heartbeat.incarnation, LIVENESS_S, "admission")
    assert await holder(store) is None


async def test_giving_up_takes_it_from_nobody_else(store: Store, role: Role, seed: Seed) -> None:
    other = await seed.dispatcher()
    await hand_to(store, other)
    await role.give_up()
    assert await holder(store) == other


async def test_who_watches_is_told_when_it_is_lost(store: Store, role: Role) -> None:
    await role.take()
    watching = asyncio.create_task(role.watch())
    await hand_to(store, None)
    with pytest.raises(RoleLost):
        await watching


@pytest.mark.parametrize(("renewed_ago_s", "judge_steady_s", "freed"), [(60, 60, True), (0, 60, False), (60, 0, False)])
async def test_the_role_of_the_dead_is_freed_by_who_may_judge(
    store: Store, seed: Seed, renewed_ago_s: float, judge_steady_s: float, freed: bool
) -> None:
    judge = await seed.dispatcher(steady_for_s=judge_steady_s)
    other = await seed.dispatcher(renewed_ago_s=renewed_ago_s)
    await hand_to(store, other)
    async with store.connection() as connection:
        await connection.fetch(upkeep.FREE_DEAD_ROLES, judge, LIVENESS_S)
    assert await holder(store) == (None if freed else other)


async def test_the_role_is_not_freed_amid_an_admission_and_nobody_waits_for_that(
    store: Store, seed: Seed, role: Role, heartbeat: Heartbeat
) -> None:
    judge = await seed.dispatcher()
    await role.take()
    async with store.transaction() as admission:
        await role.share(admission)
        async with store.connection() as connection:
            await connection.execute(
                "UPDATE dispatchers SET renewed_at = renewed_at - interval '1 hour' WHERE id = $1",
                heartbeat.incarnation,
            )
            assert not await connection.fetch(upkeep.FREE_DEAD_ROLES, judge, LIVENESS_S)
    async with store.connection() as connection:
        assert await connection.fetch(upkeep.FREE_DEAD_ROLES, judge, LIVENESS_S)


class Consumer:
    def __init__(self) -> None:
        self.released = 0

    async def ack(self, received: Sequence[Received]) -> None:
        """Nobody asks."""

    async def release(self, received: Sequence[Received]) -> None:
        self.released += len(received)


def event() -> Received:
    message = Message(b"1", type="order.created", message_id="event", timestamp=datetime.now(UTC))
    return Received(message, "order.created", 0, False, None, None)


@pytest.fixture
def admission(
    store: Store,
    index: SubscriptionIndex,
    lanes: Lanes,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
    settings: Settings,
    role: Role,
) -> Admission:
    burials = Burials(cast(Broker, SilentBroker()), telemetry, timeout_s=settings.broker_timeout_s)
    return Admission(store, burials, index, lanes, heartbeat, telemetry, settings, role)


async def test_who_has_lost_the_role_admits_nothing_of_what_it_has_in_hand(
    admission: Admission, store: Store, seed: Seed, role: Role, lanes: Lanes
) -> None:
    await seed.subscription()
    await role.take()
    await hand_to(store, await seed.dispatcher())
    incoming, _ = admission._read([event()])
    places = lanes.free
    with pytest.raises(RoleLost):
        await admission._admit_all(cast(Any, Consumer()), incoming)
    async with store.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM event_keys") == 0
    assert lanes.free == places


async def test_an_event_that_cannot_be_admitted_takes_all_that_is_in_hand_back_with_it(
    admission: Admission, role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back alone it would come again behind the others."""
    await role.take()

    async def fail(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(admission, "_commit", fail)
    monkeypatch.setattr("dispatcher.admission._LONGEST_PAUSE_S", 0.01)
    consumer = Consumer()
    incoming, _ = admission._read([event()])
    with pytest.raises(GivenBack):
        await admission._admit_all(cast(Any, consumer), incoming)
    assert consumer.released == 0


class Idle:
    """A broker with nothing to consume, and whether somebody does."""

    def __init__(self) -> None:
        self.consumed = False

    @asynccontextmanager
    async def consume(self, queue: Queue, *, prefetch: int, in_order: bool) -> AsyncIterator["Idle"]:
        assert (queue, prefetch, in_order) == (Queue.EVENTS, 10, True)
        self.consumed = True
        try:
            yield self
        finally:
            self.consumed = False

    async def receive(self, _: int) -> Sequence[Received]:
        await asyncio.Event().wait()
        raise AssertionError

    async def is_consumed(self) -> bool:
        return self.consumed

    async def is_left(self) -> bool:
        return not self.consumed


async def test_it_is_consumed_while_the_role_is_ours_and_given_up_at_the_end(
    admission: Admission, role: Role, store: Store, seed: Seed
) -> None:
    """Whoever has messages in hand, and not the right to admit them, keeps the next one waiting."""
    broker = Idle()
    running = asyncio.create_task(admit_in_order(admission, role, cast(Broker, broker), prefetch=10))
    await eventually(broker.is_consumed)
    await hand_to(store, await seed.dispatcher())
    await eventually(broker.is_left)
    await hand_to(store, None)
    await eventually(broker.is_consumed)
    running.cancel()
    await asyncio.wait({running})
    assert await holder(store) is None
