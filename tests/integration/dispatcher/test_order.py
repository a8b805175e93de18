"""Strict order over a real store: places as admitted, and the claim of the next one. Each clause taken away in turn."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from dispatcher import admission as admitting
from dispatcher.admission import Admission
from dispatcher.breakers import Breakers
from dispatcher.burial import Burials
from dispatcher.caps import Caps
from dispatcher.claims import Claims
from dispatcher.delivery import Deliverer
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import SubscriptionIndex
from dispatcher.lanes import Claim, Lanes
from dispatcher.paces import Paces
from infra.broker.base import Broker, Received
from infra.settings import Settings
from infra.store import subscriptions
from infra.store.deliveries import DeliveryRow
from infra.store.store import Store
from infra.telemetry import Telemetry
from schemas.messages import Message
from tests.integration.dispatcher.test_feeder import POLICY
from tests.support.seed import Seed
from tests.support.silent_broker import SilentBroker
from tests.support.waiting import eventually


@pytest.fixture
async def ordered(seed: Seed, heartbeat: Heartbeat) -> UUID:
    """A subscription in strict order, whose lease is ours."""
    return await seed.subscription(mode="held", feeder=heartbeat.incarnation, ordered=True)


async def claimed(claims: Claims, subscription: UUID) -> list[UUID]:
    """What the feeder gets when it asks for ten."""
    return [claim.delivery for claim in (await claims.held({subscription: 10})).claims]


async def update(store: Store, delivery: UUID, **columns: object) -> None:
    async with store.transaction() as connection:
        for name, value in columns.items():
            await connection.execute(f"UPDATE deliveries SET {name} = $2 WHERE id = $1", delivery, value)


async def end(store: Store, delivery: UUID) -> None:
    await update(store, delivery, status="delivered", claimed_by=None)


async def test_the_next_one_goes_when_the_one_before_has_ended(
    claims: Claims, seed: Seed, store: Store, ordered: UUID
) -> None:
    """Those from before the switch first, by id; then by their places, whatever their ids; then replays."""
    replayed = await seed.delivery(ordered, ordinal=1, cycle=1)
    third, second, first = [await seed.delivery(ordered, ordinal=place) for place in (30, 20, 10)]
    before = sorted([await seed.delivery(ordered) for _ in range(2)])
    for expected in (*before, first, second, third, replayed):
        assert await claimed(claims, ordered) == [expected]
        assert await claimed(claims, ordered) == []
        await end(store, expected)
    assert await claimed(claims, ordered) == []


async def test_what_it_claims_is_known_as_the_next_one(claims: Claims, seed: Seed, ordered: UUID) -> None:
    plain = await seed.subscription(mode="held", feeder=(await seed.row("subscriptions", ordered))["feeder"])
    await seed.delivery(ordered, ordinal=1)
    for _ in range(3):
        await seed.delivery(plain)
    taken: list[Claim] = (await claims.held({ordered: 10, plain: 10})).claims
    assert sorted((claim.subscription, claim.in_order) for claim in taken) == sorted(
        [(ordered, True), (plain, False), (plain, False), (plain, False)]
    )


@pytest.mark.parametrize("status", ["retrying", "pending"])
async def test_one_that_has_not_ended_blocks_those_behind_it(
    claims: Claims, seed: Seed, store: Store, ordered: UUID, status: str
) -> None:
    owner = await seed.dispatcher() if status == "pending" else None
    first = await seed.delivery(ordered, ordinal=1, status=status, claimed_by=owner)
    second = await seed.delivery(ordered, ordinal=2)
    assert await claimed(claims, ordered) == []
    await end(store, first)
    assert await claimed(claims, ordered) == [second]


@pytest.mark.parametrize("columns", [{"ordinal": 9}, {"ordinal": 1, "cycle": 1}])
async def test_one_that_waits_for_its_retry_behind_it_does_not(
    claims: Claims, seed: Seed, ordered: UUID, columns: dict[str, Any]
) -> None:
    """It has another reason to wait: it is a replay, or was admitted later and tried before the switch."""
    await seed.delivery(ordered, status="retrying", **columns)
    first = await seed.delivery(ordered, ordinal=5)
    assert await claimed(claims, ordered) == [first]


@pytest.mark.parametrize("status", ["canceled", "dead", "delivered", "retrying", "held"])
async def test_nothing_goes_while_anything_of_it_has_a_claim_ended_or_not(
    claims: Claims, seed: Seed, store: Store, ordered: UUID, status: str
) -> None:
    """Be its owner dead, and forgotten: its POST may be under way, until the reconciler has judged."""
    attempted = await seed.delivery(ordered, ordinal=9, status=status, claimed_by=uuid7())
    first = await seed.delivery(ordered, ordinal=5)
    assert await claimed(claims, ordered) == []
    await update(store, attempted, claimed_by=None)
    assert await claimed(claims, ordered) == [first]


async def test_nothing_goes_without_the_lease_or_with_an_old_heartbeat(
    claims: Claims, seed: Seed, store: Store, heartbeat: Heartbeat, ordered: UUID
) -> None:
    theirs = await seed.subscription(mode="held", feeder=await seed.dispatcher(), ordered=True)
    await seed.delivery(theirs, ordinal=1)
    assert await claimed(claims, theirs) == []
    await seed.delivery(ordered, ordinal=1)
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE dispatchers SET renewed_at = clock_timestamp() - interval '6 s' WHERE id = $1",
            heartbeat.incarnation,
        )
    assert await claimed(claims, ordered) == []


async def test_a_lease_that_is_being_taken_over_is_waited_for(
    claims: Claims, seed: Seed, store: Store, ordered: UUID
) -> None:
    """And then it is another's, who claims: a claim by what was read before would be a second one."""
    await seed.delivery(ordered, ordinal=1)
    async with store.transaction() as judge:
        await judge.execute("UPDATE subscriptions SET feeder = NULL WHERE id = $1", ordered)
        claiming = asyncio.create_task(claimed(claims, ordered))
        await eventually(lambda: _somebody_waits(store))
    assert await claiming == []


async def test_one_that_is_locked_just_now_does_not_let_the_next_one_pass(
    claims: Claims, seed: Seed, store: Store, ordered: UUID
) -> None:
    first = await seed.delivery(ordered, ordinal=1)
    second = await seed.delivery(ordered, ordinal=2)
    async with store.transaction() as operator:
        await operator.execute("SELECT FROM deliveries WHERE id = $1 FOR UPDATE", first)
        assert await claimed(claims, ordered) == []
    async with store.transaction() as operator:
        await operator.execute("UPDATE deliveries SET status = 'canceled' WHERE id = $1", first)
    assert await claimed(claims, ordered) == [second]


async def test_a_switch_is_seen_by_the_claim_that_comes_after(
    claims: Claims, seed: Seed, store: Store, ordered: UUID
) -> None:
    deliveries = [await seed.delivery(ordered, ordinal=place) for place in (1, 2, 3)]
    assert await claimed(claims, ordered) == deliveries[:1]
    await end(store, deliveries[0])
    async with store.transaction() as connection:
        row = await subscriptions.lock_for_change(connection, ordered)
        assert isinstance(row, subscriptions.SubscriptionRow)
        await subscriptions.save(connection, replace(row, ordered=False))
    assert sorted(await claimed(claims, ordered)) == sorted(deliveries[1:])


async def _somebody_waits(store: Store) -> bool:
    async with store.connection() as connection:
        return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))


# --- Places, as admitted ---------------------------------------------------------------------------------------------


class Acking:
    """A consumer whose messages were received already."""

    async def ack(self, received: Sequence[Received]) -> None:
        """Nobody asks."""


def incoming(*numbers: int) -> list[Received]:
    """Events whose publisher's clock runs backwards, so that the order of their ids is not that of their coming."""
    now = datetime.now(UTC)
    return [
        Received(
            Message(
                b"%d" % number,
                type="order.created",
                message_id=f"event {number}",
                timestamp=now - timedelta(hours=number),
            ),
            "order.created",
            0,
            False,
            None,
            None,
        )
        for number in numbers
    ]


@pytest.fixture
def admission(
    store: Store,
    index: SubscriptionIndex,
    lanes: Lanes,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
    settings: Settings,
) -> Admission:
    async def deliver(_: Claim) -> bool:
        """Nothing is settled here."""
        return False

    lanes.start(deliver)
    burials = Burials(cast(Broker, SilentBroker()), telemetry, timeout_s=settings.broker_timeout_s)
    return Admission(store, burials, index, lanes, heartbeat, telemetry, settings)


async def admit(admission: Admission, *numbers: int) -> None:
    readable, unreadable = admission._read(incoming(*numbers))
    assert not unreadable
    await admission._admit_all(cast(Any, Acking()), readable)


async def in_order(store: Store, subscription: UUID) -> list[int]:
    """The events of a subscription's deliveries, by their places."""
    async with store.connection() as connection:
        rows = await connection.fetch(
            "SELECT e.data FROM deliveries AS d JOIN events AS e ON e.id = d.event_id "
            "WHERE subscription_id = $1 AND d.ordinal IS NOT NULL ORDER BY d.ordinal",
            subscription,
        )
    return [int(row["data"]) for row in rows]


async def test_places_follow_the_messages_whatever_their_times(
    admission: Admission, seed: Seed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several statements and transactions; a duplicate keeps the place that it had."""
    monkeypatch.setattr(admitting, "_ROWS_A_STATEMENT", 3)
    ordered = [await seed.subscription(ordered=True) for _ in range(2)]
    plain = await seed.subscription()
    await admit(admission, *range(200))
    await admit(admission, 5, 200, 7, 201)
    for subscription in ordered:
        assert await in_order(store, subscription) == list(range(202))
    assert await in_order(store, plain) == []


async def test_who_admits_later_has_the_later_places_though_it_began_before(
    admission: Admission, seed: Seed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places are drawn under the subscription's lock, which is kept until the commit."""
    subscription = await seed.subscription(ordered=True)
    async with store.transaction() as other:
        await other.execute("SELECT FROM subscriptions WHERE id = $1 FOR NO KEY UPDATE", subscription)
        admitting = asyncio.create_task(admit(admission, 2))
        await eventually(lambda: _somebody_waits(store))
        drawn = await other.fetchval("SELECT nextval('delivery_ordinals')")
    await admitting
    async with store.connection() as connection:
        assert await connection.fetchval("SELECT ordinal FROM deliveries") > drawn


async def test_nothing_of_an_ordered_endpoint_is_attempted_by_who_admits_it(
    admission: Admission, seed: Seed, lanes: Lanes
) -> None:
    subscription = await seed.subscription(ordered=True)
    await admit(admission, 1)
    assert not lanes.in_hand
    assert (await seed.row("subscriptions", subscription))["mode"] == "held"


async def test_a_test_event_has_its_place_too(claims: Claims, seed: Seed, store: Store, ordered: UUID) -> None:
    plain = await seed.subscription()
    first = await seed.delivery(ordered, ordinal=0)
    async with store.transaction() as connection:
        now = datetime.now(UTC) - timedelta(hours=1)
        sent = [
            await subscriptions.send_test(connection, one, now=now, external_id=str(uuid7()), traceparent=None)
            for one in (ordered, plain)
        ]
    tests = [row.id for row in sent if isinstance(row, DeliveryRow)]
    assert (await seed.row("deliveries", tests[1]))["ordinal"] is None
    assert await claimed(claims, ordered) == [first]
    await end(store, first)
    assert await claimed(claims, ordered) == tests[:1]


# --- Claims from before the switch ------------------------------------------------------------------------------------


async def test_a_claim_by_an_older_index_is_made_of_no_ordered_backlog(
    claims: Claims, seed: Seed, store: Store, heartbeat: Heartbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscription is switched between the refresh of the index and the claim."""
    subscription = await seed.subscription(mode="held", feeder=heartbeat.incarnation)
    for _ in range(3):
        await seed.delivery(subscription)
    assert not (await claims.held({await seed.subscription(): 1})).claims  # the index is current
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE subscriptions SET ordered = true WHERE id = $1", subscription
        )  # no new version
    assert await claimed(claims, subscription) == []


@pytest.mark.parametrize("in_order", [True, False])
async def test_what_was_claimed_before_the_switch_and_not_begun_is_held(
    claims: Claims, seed: Seed, index: SubscriptionIndex, heartbeat: Heartbeat, telemetry: Telemetry, in_order: bool
) -> None:
    subscription = await seed.subscription(mode="held", feeder=heartbeat.incarnation, ordered=in_order)
    await seed.delivery(subscription)
    (claim,) = (await claims.held({subscription: 1})).claims
    endpoint = index.get(subscription)
    assert endpoint is not None
    breakers = Breakers(POLICY, telemetry)
    deliverer = Deliverer(
        index,
        cast(Any, None),
        heartbeat,
        cast(Any, None),
        Paces(ahead_s=0.5),
        breakers,
        Caps(most_at_once=1),
        telemetry,
        cast(Any, None),
        cast(Any, None),
    )
    obstacle = deliverer._obstacle(claim, replace(endpoint, ordered=True))
    assert (obstacle is None) == in_order
