"""Admission over a real store, with what can go wrong around its one transaction."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import cast

import asyncpg
import pytest

from dispatcher.admission import Admission
from dispatcher.burial import MESSAGE_ID_HEADER, TENANT_HEADER, Burials
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import SubscriptionIndex
from dispatcher.lanes import Claim, Lanes
from infra.broker.base import Broker, Outgoing, Received, ToDead
from infra.settings import Settings
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.errors import BrokerError, Problem, PublishRefused, PublishTimeout, StoreUnavailable
from schemas.events import Unreadable, build_event
from schemas.messages import Message
from tests.support.seed import Seed
from tests.support.silent_broker import SilentBroker
from tests.support.waiting import eventually


class Handed:
    """A consumer with one batch; `at_ack` looks at the world when it is acked."""

    def __init__(self, *bodies: bytes) -> None:
        self._batch = [
            Received(
                Message(body, type="order.created", message_id=f"id-{number}"), "order.created", 0, False, None, None
            )
            for number, body in enumerate(bodies)
        ]
        self.acked: list[bytes] = []
        self.released: list[bytes] = []
        self.in_hand_at_ack = 0
        self.lost = False
        self.lanes: Lanes | None = None

    async def receive(self, limit: int) -> Sequence[Received]:
        if not self._batch:
            await asyncio.Event().wait()
        batch, self._batch = self._batch, []
        return batch

    async def ack(self, received: Sequence[Received]) -> None:
        assert self.lanes is not None
        self.in_hand_at_ack = len(self.lanes.in_hand)
        self.acked += [one.message.body for one in received]

    async def release(self, received: Sequence[Received]) -> None:
        self.released += [one.message.body for one in received]

    def holds(self, received: Received) -> bool:
        return not self.lost and received.message.body not in (*self.acked, *self.released)


@pytest.fixture
def admission(
    store: Store,
    broker: SilentBroker,
    index: SubscriptionIndex,
    lanes: Lanes,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
    settings: Settings,
) -> Admission:
    async def deliver(_: Claim) -> bool:
        """Nothing is settled here: what is in hand stays there."""
        return False

    lanes.start(deliver)
    burials = Burials(cast(Broker, broker), telemetry, timeout_s=settings.broker_timeout_s)
    return Admission(store, burials, index, lanes, heartbeat, telemetry, settings)


@asynccontextmanager
async def admitting(admission: Admission, handed: Handed, lanes: Lanes) -> AsyncIterator[None]:
    handed.lanes = lanes
    task = asyncio.create_task(admission.run(handed))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_claims_are_known_as_in_hand_before_the_messages_are_acked(
    admission: Admission, lanes: Lanes, seed: Seed
) -> None:
    """An ack may take long: the reconciler must not take what is claimed for lost meanwhile."""
    await seed.subscription()
    handed = Handed(b"1", b"2")
    async with admitting(admission, handed, lanes):

        async def acked() -> bool:
            return len(handed.acked) == 2

        await eventually(acked)
    assert handed.in_hand_at_ack == 2


@pytest.mark.parametrize(("mode", "status"), [("open", "pending"), ("held", "held")])
async def test_an_endpoint_that_its_feeder_has_opened_is_not_held_again_by_who_does_not_know(
    admission: Admission, lanes: Lanes, seed: Seed, store: Store, mode: str, status: str
) -> None:
    """Of a fleet, each looks only now and then at who is held."""
    subscription = await seed.subscription(mode=mode)
    lanes.held.add(subscription)
    handed = Handed(b"1", b"2")
    async with admitting(admission, handed, lanes):

        async def acked() -> bool:
            return len(handed.acked) == 2

        await eventually(acked)
    async with store.connection() as connection:
        stored = await connection.fetch("SELECT status, claimed_by IS NOT NULL AS claimed FROM deliveries")
    assert [(row["status"], row["claimed"]) for row in stored] == 2 * [(status, mode == "open")]
    assert (await seed.row("subscriptions", subscription))["mode"] == mode
    assert (subscription in lanes.held) == (mode == "held")
    assert lanes.in_hand_of(subscription) == (2 if mode == "open" else 0)


async def test_a_lost_commit_is_tried_again_and_admits_once(
    admission: Admission, lanes: Lanes, seed: Seed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await seed.subscription()
    real, faults = store.transaction, ["before", "after"]

    @asynccontextmanager
    async def transaction() -> AsyncIterator[asyncpg.Connection]:
        fault = faults.pop(0) if faults else None
        if fault == "before":
            raise StoreUnavailable("away")
        async with real() as connection:
            yield connection
        if fault == "after":
            raise StoreUnavailable("the answer was lost")

    monkeypatch.setattr(store, "transaction", transaction)
    handed = Handed(b"1")
    async with admitting(admission, handed, lanes):

        async def acked() -> bool:
            return handed.acked == [b"1"]

        await eventually(acked)
    async with store.connection() as connection:
        assert await connection.fetchval("SELECT count(*) FROM events") == 1
        assert await connection.fetchval("SELECT count(*) FROM deliveries") == 1
    assert lanes.free == 1000  # the claim, of which no answer came, is the reconciler's to hold


@pytest.mark.parametrize(
    ("fault", "buried", "released"),
    [(asyncpg.DataError("this text is refused"), [b"2"], []), (ZeroDivisionError("a mistake of ours"), [], [b"2"])],
)
async def test_an_event_that_cannot_be_admitted_keeps_its_neighbours_from_nothing(
    admission: Admission,
    lanes: Lanes,
    seed: Seed,
    broker: SilentBroker,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    buried: list[bytes],
    released: list[bytes],
) -> None:
    await seed.subscription()
    real = admission._store_events

    async def store_events(connection: object, new: Sequence[object]) -> None:
        if any(one.event.data == b"2" for one in new):  # type: ignore[attr-defined]
            raise fault
        await real(connection, new)  # type: ignore[arg-type]

    monkeypatch.setattr(admission, "_store_events", store_events)
    monkeypatch.setattr("dispatcher.admission._LONGEST_PAUSE_S", 0.01)
    handed = Handed(b"1", b"2", b"3")
    async with admitting(admission, handed, lanes):

        async def all_done() -> bool:
            return len(handed.acked) + len(handed.released) == 3

        await eventually(all_done)
    assert handed.released == released
    assert [sent.message.body for sent in broker.sent if isinstance(sent.to, ToDead)] == buried
    assert len(lanes.in_hand) == 2


async def test_a_burial_that_the_broker_refuses_is_tried_again_and_keeps_no_good_event_waiting(
    admission: Admission, lanes: Lanes, broker: SilentBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not given back either: it would come again as a suspect, alone."""
    broker.refuses = True
    monkeypatch.setattr("dispatcher.burial._FIRST_PAUSE_S", 0.01)
    handed = Handed(b"poison", b"1")
    async with admitting(admission, handed, lanes):

        async def good_one_acked() -> bool:
            return handed.acked == [b"1"]

        await eventually(good_one_acked)
        broker.refuses = False

        async def buried() -> bool:
            return handed.acked == [b"1", b"poison"]

        await eventually(buried)
    assert [sent.message.body for sent in broker.sent] == [b"poison"]
    assert handed.released == []


async def test_what_the_broker_has_taken_back_is_not_buried_by_who_had_it(
    admission: Admission, lanes: Lanes, broker: SilentBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would be in the dead letters twice: it is handed out anew."""
    broker.refuses = True
    monkeypatch.setattr("dispatcher.burial._FIRST_PAUSE_S", 0.01)
    handed = Handed(b"poison", b"1")
    handed.lost = True
    async with admitting(admission, handed, lanes):

        async def given_up() -> bool:
            return handed.acked == [b"1"] and not [task for task in asyncio.all_tasks() if task.get_name() == "bury"]

        await eventually(given_up)
        broker.refuses = False
    assert broker.sent == []


async def test_what_can_never_be_published_is_given_back_and_left_to_the_delivery_limit(
    lanes: Lanes, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message from when the broker took larger ones: with its headers it is refused, and without them too."""
    monkeypatch.setattr("dispatcher.burial._FIRST_PAUSE_S", 0.01)
    tried: list[Message] = []

    class Smaller:
        async def publish_many(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> Sequence[BrokerError | None]:
            tried.extend(one.message for one in outgoing)
            return [PublishRefused("message size 6 is larger", unfit=True)] * len(outgoing)

    handed = Handed()
    handed.lanes = lanes
    received = Received(Message(b"poison", headers={"x": 1}), "order.created", 0, False, None, None)
    async with asyncio.timeout(10), Burials(cast(Broker, Smaller()), telemetry, timeout_s=1) as burials:
        burials.begin(handed, [(received, Unreadable("body", "must be at most 5 bytes"))])
    assert ["x" in letter.headers for letter in tried] == [True, False]
    assert (handed.acked, handed.released) == ([], [b"poison"])


async def test_a_burial_that_is_tried_again_bears_the_same_id_each_time(
    lanes: Lanes, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign producer may have set none, and what was not confirmed in time may be stored all the same."""
    monkeypatch.setattr("dispatcher.burial._FIRST_PAUSE_S", 0.01)
    broker = ForgetfulBroker()
    received = Received(Message(b"poison"), "order.created", 0, False, None, None)
    handed = Handed()
    handed.lanes = lanes
    async with Burials(cast(Broker, broker), telemetry, timeout_s=1) as burials:
        burials.begin(handed, [(received, Unreadable("body", "must be JSON"))])
    first, second = broker.stored
    assert first.message_id is None
    assert first.headers[MESSAGE_ID_HEADER] == second.headers[MESSAGE_ID_HEADER]
    assert handed.acked == [b"poison"]


class ForgetfulBroker:
    """Stores everything, and confirms the first publish too late."""

    def __init__(self) -> None:
        self.stored: list[Message] = []

    async def publish_many(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> Sequence[BrokerError | None]:
        self.stored += [one.message for one in outgoing]
        late = len(self.stored) == len(outgoing)
        return [PublishTimeout("too late") if late else None] * len(outgoing)


async def test_an_event_that_its_schema_refuses_is_buried_as_whose_it_is_and_as_nobody_else_says(
    lanes: Lanes, telemetry: Telemetry
) -> None:
    """Also where its headers cannot be published with it. What is unreadable is nobody's, whatever its headers say."""
    tried: list[Outgoing] = []

    class Smaller:
        async def publish_many(self, outgoing: Sequence[Outgoing], *, timeout_s: float) -> Sequence[BrokerError | None]:
            tried.extend(outgoing)
            return [
                PublishRefused("its headers fill a frame", unfit=True) if "x" in outgoing[0].message.headers else None
            ]

    handed = Handed()
    handed.lanes = lanes
    event, poison = (
        Received(Message(body, headers={"x": 1, TENANT_HEADER: "another"}), "order.created", 0, False, None, None)
        for body in (b"1", b"poison")
    )
    said = build_event(
        type="order.created", data=b"1", external_id="1", source="s", time=datetime.now(UTC), tenant="acme"
    )
    async with asyncio.timeout(10), Burials(cast(Broker, Smaller()), telemetry, timeout_s=1) as burials:
        burials.begin_invalid(handed, [(event, said, Problem("data", "must be text"))])
    async with asyncio.timeout(10), Burials(cast(Broker, Smaller()), telemetry, timeout_s=1) as burials:
        burials.begin(handed, [(poison, Unreadable("body", "must be JSON"))])
    assert [one.to for one in tried] == [ToDead("invalid")] * 2 + [ToDead("unreadable")] * 2
    assert [one.message.headers.get(TENANT_HEADER) for one in tried] == ["acme", "acme", None, None]
    assert handed.acked == [b"1", b"poison"]
