"""Claims: by work item and by the feeder. Each clause of the rule, taken away one at a time."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import orjson
import pytest
from asyncpg import Record

from dispatcher.claims import Claims
from dispatcher.heartbeat import Heartbeat
from dispatcher.index import SubscriptionIndex
from infra.store import statements as sql
from infra.store import subscriptions
from infra.store.store import Store
from infra.store.subscriptions import SubscriptionRow
from schemas.ids import SUBSCRIPTION, public_id
from schemas.work import WorkItem
from tests.support.backlog import add_deliveries
from tests.support.seed import Seed


def item(delivery: UUID, *, cycle: int = 0, attempt: int = 3) -> WorkItem:
    return WorkItem(delivery, cycle, attempt, not_before_ms=0)


@pytest.fixture
async def retrying(seed: Seed) -> UUID:
    """A delivery that waits for its third attempt."""
    return await seed.delivery(await seed.subscription(), status="retrying", attempts=2)


async def test_a_due_work_item_claims_its_row(claims: Claims, heartbeat: Heartbeat, retrying: UUID, seed: Seed) -> None:
    (claim,) = await claims.due([item(retrying)])
    assert (claim.delivery, claim.held.cycle, claim.held.attempt, claim.held.fence) == (retrying, 0, 3, 1)
    assert (claim.content.type, claim.content.data) == ("order.created", b'{"n":1}')
    row = await seed.row("deliveries", retrying)
    assert (row["claimed_by"], row["fence"], row["status"]) == (heartbeat.incarnation, 1, "retrying")


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "held"},
        {"status": "delivered"},
        {"status": "dead"},
        {"status": "canceled"},
        {"cycle": 1},
        {"attempts": 1},
        {"attempts": 3},
    ],
)
async def test_a_work_item_whose_row_moved_on_claims_nothing(
    claims: Claims, seed: Seed, columns: dict[str, object]
) -> None:
    delivery = await seed.delivery(await seed.subscription(), **{"status": "retrying", "attempts": 2, **columns})
    assert await claims.due([item(delivery)]) == []
    assert (await seed.row("deliveries", delivery))["fence"] == 0


async def test_a_claimed_row_is_not_claimed_again_be_its_owner_alive_or_dead(
    claims: Claims, seed: Seed, retrying: UUID
) -> None:
    assert len(await claims.due([item(retrying)])) == 1
    assert await claims.due([item(retrying)]) == []


async def test_two_copies_of_one_item_make_one_claim(claims: Claims, retrying: UUID) -> None:
    assert len(await claims.due([item(retrying), item(retrying)])) == 1


async def test_two_dispatchers_never_claim_the_same(store: Store, claims: Claims, seed: Seed) -> None:
    subscription = await seed.subscription()
    deliveries = [await seed.delivery(subscription, status="retrying", attempts=2) for _ in range(40)]
    items = [item(delivery) for delivery in deliveries]
    batches = await asyncio.gather(*(claims.due(batch) for batch in (items, items[::-1], items[::2], items)))
    claimed = [claim.delivery for batch in batches for claim in batch]
    assert sorted(claimed) == sorted(deliveries)


async def test_who_lapsed_claims_nothing(
    claims: Claims, heartbeat: Heartbeat, store: Store, retrying: UUID, seed: Seed
) -> None:
    async with store.connection() as connection:
        await connection.execute(
            "UPDATE dispatchers SET renewed_at = clock_timestamp() - interval '6 s' WHERE id = $1",
            heartbeat.incarnation,
        )
    assert await claims.due([item(retrying)]) == []
    subscription = await seed.subscription(mode="held", feeder=heartbeat.incarnation)
    await seed.delivery(subscription)
    assert not (await claims.held({subscription: 10})).claims


async def test_the_feeder_takes_live_ones_before_replays_and_each_in_order(
    claims: Claims, heartbeat: Heartbeat, seed: Seed
) -> None:
    subscription = await seed.subscription(mode="held", feeder=heartbeat.incarnation)
    replayed = [await seed.delivery(subscription, cycle=1) for _ in range(3)]
    live = [await seed.delivery(subscription) for _ in range(3)]
    first = [claim.delivery for claim in (await claims.held({subscription: 4})).claims]
    assert first == sorted(sorted(live) + sorted(replayed)[:1])
    rest = [claim.delivery for claim in (await claims.held({subscription: 4})).claims]
    assert rest == sorted(replayed)[1:]


async def test_the_feeder_takes_nothing_without_the_lease(claims: Claims, seed: Seed) -> None:
    subscription = await seed.subscription(mode="held", feeder=await seed.dispatcher())
    await seed.delivery(subscription)
    assert not (await claims.held({subscription: 10})).claims


async def test_a_change_of_the_subscription_is_seen_by_the_claim_that_comes_after(
    claims: Claims, seed: Seed, retrying: UUID, store: Store
) -> None:
    await claims.due([item(retrying, attempt=9)])  # claims nothing, but has read the subscriptions
    row = await seed.row("deliveries", retrying)
    async with store.transaction() as connection:
        await connection.execute("UPDATE subscription_version SET version = version + 1")
        await connection.execute(
            "UPDATE subscriptions SET url = 'https://example.com/new', version = "
            "(SELECT version FROM subscription_version) WHERE id = $1",
            row["subscription_id"],
        )
    (claim,) = await claims.due([item(retrying)])
    endpoint = claims._index.get(claim.subscription)
    assert endpoint is not None
    assert endpoint.url == "https://example.com/new"


async def test_own_claims_that_are_not_in_hand_are_found(claims: Claims, retrying: UUID) -> None:
    (claim,) = await claims.due([item(retrying)])
    assert [lost.held for lost in await claims.lost(set(), age_s=0)] == [claim.held]
    assert await claims.lost({retrying}, age_s=0) == []
    assert await claims.lost(set(), age_s=60) == []


async def test_a_claim_costs_the_same_however_long_the_backlog_is(
    database_url: str, seed: Seed, store: Store, heartbeat: Heartbeat
) -> None:
    """One of 20,000 is claimed without reading the others."""
    subscription = await seed.subscription(mode="held", feeder=heartbeat.incarnation)
    await add_deliveries(database_url, public_id(SUBSCRIPTION, subscription), 20_000)
    async with store.connection() as connection:
        await connection.execute("ANALYZE deliveries")
        pages = await connection.fetchval("SELECT max(relpages) FROM pg_class WHERE relname LIKE 'deliveries\\_2%'")
        (plan,) = orjson.loads(
            await connection.fetchval(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql.CLAIM_HELD}",
                heartbeat.incarnation,
                60.0,
                [subscription],
                [1],
            )
        )
    read = plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
    assert (await _claimed(store)) == 1
    assert read < pages / 2


async def _claimed(store: Store) -> int:
    async with store.connection() as connection:
        return int(await connection.fetchval("SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL"))


@pytest.mark.parametrize("status", ["held", "retrying"])
async def test_what_was_stored_after_a_change_is_claimed_with_that_change_known(
    claims: Claims,
    index: SubscriptionIndex,
    seed: Seed,
    store: Store,
    heartbeat: Heartbeat,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
) -> None:
    """The change comes when the claim's transaction has begun already; it may be of credentials."""
    subscription = await seed.subscription(mode="held", feeder=heartbeat.incarnation)
    assert not (await claims.held({subscription: 1})).claims  # the index is current

    async def change_before(*arguments: Any) -> Sequence[Record]:
        async with store.transaction() as connection:
            row = await subscriptions.lock_for_change(connection, subscription)
            assert isinstance(row, SubscriptionRow)
            await subscriptions.save(connection, replace(row, timeout_s=3))
        return await fetch(*arguments)

    fetch = claims._fetch
    delivery = await seed.delivery(subscription, status=status, attempts=2 if status == "retrying" else 0)
    monkeypatch.setattr(claims, "_fetch", change_before)
    if status == "held":
        claimed = (await claims.held({subscription: 1})).claims
    else:
        claimed = await claims.due([item(delivery)])
    assert [claim.delivery for claim in claimed] == [delivery]
    endpoint = index.get(subscription)
    assert endpoint is not None
    assert endpoint.timeout_s == 3
