"""The feeder: leases, feeding, and the closing check with its race."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from dispatcher.breakers import Breakers
from dispatcher.claims import Claims
from dispatcher.core.breaker import BreakerPolicy
from dispatcher.core.gate import fair_share
from dispatcher.due import room_for_claims
from dispatcher.feeder import Feeder
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import SubscriptionIndex
from dispatcher.lanes import Claim, Lanes
from dispatcher.paces import Paces
from infra.settings import Settings
from infra.store import statements as sql
from infra.store import subscriptions
from infra.store.store import Store
from infra.store.subscriptions import SubscriptionRow
from infra.telemetry import Telemetry
from schemas.deliveries import Answered
from tests.support.points import Moment, Point, Step, trap
from tests.support.seed import Seed
from tests.support.waiting import eventually

PAST = datetime(2026, 1, 1, tzinfo=UTC)
NEARLY_ALL_ITS_ROOM = 50  # of the 62 deliveries that an endpoint may have in hand, of 1000
POLICY = BreakerPolicy(window_s=60, min_attempts=3, failure_ratio=1, timeouts=3, rest_s=30, longest_rest_s=600)


@pytest.fixture
def fed(lanes: Lanes) -> list[Claim]:
    """What the lanes were given, in order; nothing of it is ever settled."""
    taken: list[Claim] = []

    async def deliver(claim: Claim) -> bool:
        taken.append(claim)
        return True

    lanes.start(deliver)
    return taken


@pytest.fixture
def feeder(
    store: Store,
    claims: Claims,
    index: SubscriptionIndex,
    lanes: Lanes,
    heartbeat: Heartbeat,
    telemetry: Telemetry,
    settings: Settings,
) -> Feeder:
    return Feeder(store, claims, index, lanes, Paces(ahead_s=0.5), Breakers(POLICY, telemetry), heartbeat, settings)


@asynccontextmanager
async def running(feeder: Feeder) -> AsyncIterator[None]:
    task = asyncio.create_task(feeder.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_held_endpoint_is_leased_and_fed_in_order(
    feeder: Feeder, fed: list[Claim], seed: Seed, heartbeat: Heartbeat
) -> None:
    subscription = await seed.subscription(mode="held")
    deliveries = [await seed.delivery(subscription) for _ in range(NEARLY_ALL_ITS_ROOM)]
    async with running(feeder):

        async def all_fed() -> bool:
            return len(fed) == NEARLY_ALL_ITS_ROOM

        await eventually(all_fed)
    assert [claim.delivery for claim in fed] == sorted(deliveries)
    assert (await seed.row("subscriptions", subscription))["feeder"] == heartbeat.incarnation


async def test_what_is_being_claimed_has_its_places_already(
    feeder: Feeder, fed: list[Claim], seed: Seed, lanes: Lanes, settings: Settings
) -> None:
    """Work items are claimed at the same time, and the two together may not take more than there is."""
    subscription = await seed.subscription(mode="held")
    await seed.delivery(subscription)
    places, room = lanes.free, min(fair_share(lanes.free), room_for_claims(lanes, settings))
    free: list[int] = []
    with trap(Point(Moment.BEFORE, Step.COMMIT, "CLAIM_HELD"), lambda: free.append(lanes.free)):
        async with running(feeder):
            await eventually(lambda: one_is_fed(fed))
    assert free == [places - room]
    assert lanes.free == places - 1


async def one_is_fed(fed: list[Claim]) -> bool:
    return len(fed) == 1


async def test_no_more_is_taken_than_the_endpoint_may_have_in_hand(
    feeder: Feeder, fed: list[Claim], seed: Seed, lanes: Lanes
) -> None:
    subscription, other = await seed.subscription(mode="held"), await seed.subscription(mode="held")
    for _ in range(70):
        await seed.delivery(subscription)
    marker = await seed.delivery(other)
    async with running(feeder):

        async def later_one_fed() -> bool:
            return marker in {claim.delivery for claim in fed}

        await eventually(later_one_fed)
    assert lanes.in_hand_of(subscription) <= 1000 // 16


async def test_nothing_is_taken_when_the_bytes_in_hand_leave_no_room_for_an_event(
    feeder: Feeder, fed: list[Claim], seed: Seed, lanes: Lanes, settings: Settings
) -> None:
    subscription = await seed.subscription(mode="held")
    await seed.delivery(subscription)
    lanes.free_bytes = settings.max_event_bytes - 1
    await feeder._lease()
    await feeder._feed([subscription])
    assert not fed
    lanes.free_bytes = settings.max_event_bytes
    await feeder._feed([subscription])
    await asyncio.sleep(0)
    assert len(fed) == 1


async def test_another_dispatchers_lease_is_respected(
    feeder: Feeder, fed: list[Claim], seed: Seed, heartbeat: Heartbeat
) -> None:
    theirs = await seed.subscription(mode="held", feeder=await seed.dispatcher())
    await seed.delivery(theirs)
    mine = await seed.delivery(await seed.subscription(mode="held"))
    async with running(feeder):

        async def mine_fed() -> bool:
            return [claim.delivery for claim in fed] == [mine]

        await eventually(mine_fed)
    assert (await seed.row("subscriptions", theirs))["feeder"] != heartbeat.incarnation


async def test_an_empty_backlog_opens_the_endpoint(feeder: Feeder, fed: list[Claim], seed: Seed, lanes: Lanes) -> None:
    subscription = await seed.subscription(mode="held")
    lanes.held.add(subscription)
    async with running(feeder):

        async def opened() -> bool:
            return bool((await seed.row("subscriptions", subscription))["mode"] == "open")

        await eventually(opened)
    row = await seed.row("subscriptions", subscription)
    assert row["feeder"] is None
    assert subscription not in lanes.held
    assert not fed


@pytest.mark.parametrize(
    ("count", "columns", "mode"),
    [
        (5, {}, "open"),
        (NEARLY_ALL_ITS_ROOM, {}, "held"),  # the next ones would hold it again
        (1, {"ordered": True}, "held"),
        (1, {"rate_per_s": 10.0, "rate_burst": 10}, "held"),  # its turns are taken under the lease
        (1, {"breaker_until": PAST, "breaker_times": 1}, "held"),  # what is in hand is a probe
    ],
    ids=["idle", "busy", "ordered", "paced", "probed"],
)
async def test_an_endpoint_whose_backlog_is_in_hand_is_opened_unless_something_hangs_on_its_lease(
    feeder: Feeder, fed: list[Claim], seed: Seed, lanes: Lanes, count: int, columns: dict[str, object], mode: str
) -> None:
    subscription = await seed.subscription(mode="held", **columns)
    for _ in range(count):
        await seed.delivery(subscription)
    await feeder._lease()
    await feeder._feed([subscription])
    await feeder._feed([subscription])
    assert lanes.in_hand_of(subscription) == count
    assert (await seed.row("subscriptions", subscription))["mode"] == mode
    assert (subscription in lanes.held) == (mode == "held")


async def test_an_endpoint_that_asked_for_less_is_not_opened_while_something_of_it_is_in_hand(
    feeder: Feeder, fed: list[Claim], seed: Seed, lanes: Lanes
) -> None:
    """Nobody else knows: another dispatcher would send it as much as it likes."""
    subscription, attempt = await seed.subscription(mode="held"), uuid7()
    await seed.delivery(subscription)
    await feeder._lease()
    endpoint = feeder._index.get(subscription)
    assert endpoint is not None
    lanes.caps.began(subscription, attempt)
    lanes.caps.ended(subscription, attempt, endpoint.url, Answered(429, b"", None, 5, None))
    await feeder._feed([subscription])
    assert lanes.in_hand_of(subscription) == 1
    assert (await seed.row("subscriptions", subscription))["mode"] == "held"


@pytest.mark.parametrize("state", ["paused", "disabled"])
async def test_a_blocked_endpoint_is_not_fed(feeder: Feeder, fed: list[Claim], seed: Seed, state: str) -> None:
    subscription = await seed.subscription(mode="held", state=state)
    await seed.delivery(subscription)
    marker = await seed.delivery(await seed.subscription(mode="held"))
    async with running(feeder):

        async def marker_fed() -> bool:
            return bool(fed)

        await eventually(marker_fed)
    assert [claim.delivery for claim in fed] == [marker]
    assert (await seed.row("subscriptions", subscription))["mode"] == "held"


async def test_an_endpoint_is_not_opened_over_a_row_that_is_just_being_held(
    feeder: Feeder, fed: list[Claim], seed: Seed, store: Store
) -> None:
    """The race: somebody holds a row and has not committed when the feeder finds the backlog empty. Nor is that waited
    for: others would wait as well."""
    subscription = await seed.subscription(mode="held")
    delivery = await seed.delivery(subscription, status="retrying", attempts=1)
    other = await seed.subscription(mode="held")
    theirs = await seed.delivery(other)
    await feeder._lease()
    async with store.transaction() as holding:
        await holding.execute(sql.LOCK_ENDPOINTS, [subscription])
        await holding.execute("UPDATE deliveries SET status = 'held' WHERE id = $1", delivery)
        async with asyncio.timeout(5):
            await feeder._feed([subscription, other])
    await asyncio.sleep(0)
    assert [claim.delivery for claim in fed] == [theirs]
    assert (await seed.row("subscriptions", subscription))["mode"] == "held"
    assert (await seed.row("subscriptions", other))["mode"] == "open"
    await feeder._feed([subscription])
    await asyncio.sleep(0)
    assert [claim.delivery for claim in fed] == [theirs, delivery]
    assert (await seed.row("deliveries", delivery))["status"] == "pending"
    assert (await seed.row("subscriptions", subscription))["mode"] == "open"


async def test_a_limit_that_is_set_before_the_claim_keeps_the_endpoint_under_its_lease(
    feeder: Feeder, seed: Seed, store: Store
) -> None:
    """The index is not current when it is reckoned how much may be claimed."""
    subscription = await seed.subscription(mode="held")
    await seed.delivery(subscription)
    await feeder._lease()
    async with store.transaction() as connection:
        row = await subscriptions.lock_for_change(connection, subscription)
        assert isinstance(row, SubscriptionRow)
        await subscriptions.save(connection, replace(row, rate_per_s=1.0, rate_burst=1))
    await feeder._feed([subscription])
    assert (await seed.row("subscriptions", subscription))["mode"] == "held"


async def test_leases_are_given_back_at_the_end(feeder: Feeder, seed: Seed, heartbeat: Heartbeat) -> None:
    subscription: UUID = await seed.subscription(mode="held", feeder=heartbeat.incarnation)
    await feeder.release()
    assert (await seed.row("subscriptions", subscription))["feeder"] is None
