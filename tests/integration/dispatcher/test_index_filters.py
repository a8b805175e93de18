"""What the index makes of `filter`: compiled once, and closed where it cannot be read."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from dispatcher.core.request import Content
from dispatcher.index import UNREADABLE, SubscriptionIndex, wanting
from infra.store.store import Store
from tests.support.seed import Seed


async def wanted_by(index: SubscriptionIndex, store: Store, data: bytes) -> list[UUID]:
    async with store.connection() as connection:
        await index.refresh(connection)
    content = Content("order.created", datetime.now(UTC), data, "shop", "e-1")
    return [one.id for one in await wanting(index.match("default", "order.created"), "default", content)]


async def test_an_event_reaches_whose_filter_it_passes_and_who_has_none(
    seed: Seed, index: SubscriptionIndex, store: Store
) -> None:
    every = await seed.subscription()
    large = await seed.subscription(filter={"data.amount": {"$gte": 100}})
    assert await wanted_by(index, store, b'{"amount": 100}') == [every, large]
    assert await wanted_by(index, store, b'{"amount": 99}') == [every]
    assert await wanted_by(index, store, b"[]") == [every]


async def test_data_is_not_parsed_for_who_has_no_filter(
    seed: Seed, index: SubscriptionIndex, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    monkeypatch.setattr("dispatcher.core.filter._read", read.append)
    await seed.subscription()
    await wanted_by(index, store, b"1")
    assert read == []
    for _ in range(3):
        await seed.subscription(filter={"data": 1})
    await wanted_by(index, store, b"1")
    assert read == [b"1"]


@pytest.mark.parametrize("stored", [{"data.n": {"$regex": "x"}}, [], {}, 7])
async def test_a_filter_that_cannot_be_read_matches_nothing_and_is_told_of(
    seed: Seed, index: SubscriptionIndex, store: Store, stored: object
) -> None:
    subscription = await seed.subscription(filter=stored)
    with capture_logs() as logs:
        assert await wanted_by(index, store, b"1") == []
    assert [line["subscription"] for line in logs if line["event"] == "subscription.filter_unreadable"] == [
        str(subscription)
    ]


async def test_a_row_that_cannot_be_read_is_held_for_what_its_filter_lets_through(
    seed: Seed, index: SubscriptionIndex, store: Store
) -> None:
    subscription = await seed.subscription(filter={"data": 1}, signature={})
    assert await wanted_by(index, store, b"1") == [subscription]
    assert await wanted_by(index, store, b"2") == []
    endpoint = index.get(subscription)
    assert endpoint is not None
    assert endpoint.blocked == UNREADABLE
