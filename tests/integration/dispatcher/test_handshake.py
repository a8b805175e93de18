"""The handshake's question: one at a time, remembered for the whole fleet or not at all."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import pytest

from dispatcher.authorization import Authorization
from dispatcher.core.pace import RateLimit
from dispatcher.handshake import Handshakes
from dispatcher.index import UNSIGNED, Endpoint, SubscriptionIndex
from infra.egress import Egress, open_egress
from infra.settings import read_settings
from infra.store import locks, subscriptions
from infra.store import statements as sql
from infra.store.store import Store
from schemas.deliveries import Failure, NoAnswer
from tests.support.receivers import Behaviour, Receiver
from tests.support.seed import Seed
from tests.support.system import ANY_URL

ORIGIN = "hookhare.example"  # as of the fixture `index`
CONSENT = {"WebHook-Allowed-Origin": ORIGIN, "WebHook-Allowed-Rate": "120"}


@pytest.fixture
async def egress() -> AsyncIterator[Egress]:
    async with open_egress(read_settings(egress_allow="127.0.0.0/8", **ANY_URL)) as opened:
        yield opened


@pytest.fixture
def handshakes(store: Store, index: SubscriptionIndex, egress: Egress) -> Handshakes:
    return Handshakes(store, index, egress, Authorization(egress), origin=ORIGIN)


async def compiled(store: Store, index: SubscriptionIndex, key: UUID) -> Endpoint:
    async with store.connection() as connection:
        await index.refresh(connection)
    endpoint = index.get(key)
    assert endpoint is not None
    return endpoint


async def asking(seed: Seed, index: SubscriptionIndex, url: str, **columns: object) -> Endpoint:
    key = await seed.subscription(url=url, format="cloudevents_binary", handshake=True, **columns)
    return await compiled(seed.store, index, key)


async def test_what_it_agrees_to_is_in_the_row_with_a_new_version_and_in_the_index(
    seed: Seed, index: SubscriptionIndex, handshakes: Handshakes, receiver: Receiver
) -> None:
    endpoint = await asking(seed, index, receiver.behave("/hook", Behaviour(consent=CONSENT)))
    before = await seed.row("subscriptions", endpoint.id)
    assert (endpoint.asks_first, endpoint.limit) == (True, None)
    assert await handshakes.ask(endpoint) is None
    after = await seed.row("subscriptions", endpoint.id)
    assert after["version"] > before["version"]
    assert (after["validated_at"] is not None, after["allowed_per_min"]) == (True, 120)
    assert after["updated_at"] == before["updated_at"]  # nobody changed its configuration
    now = index.get(endpoint.id)
    assert now is not None
    assert (now.asks_first, now.limit) == (False, RateLimit(2, 1))
    assert now.recipe.headers == {"webhook-request-origin": ORIGIN}


async def test_many_that_ask_at_once_are_one_question(
    seed: Seed, index: SubscriptionIndex, handshakes: Handshakes, receiver: Receiver
) -> None:
    hold = asyncio.Event()
    endpoint = await asking(seed, index, receiver.behave("/hook", Behaviour(consent=CONSENT, hold=hold)))
    asked = [asyncio.create_task(handshakes.ask(endpoint)) for _ in range(5)]
    await receiver.wait_for(1)
    hold.set()
    assert await asyncio.gather(*asked) == [None] * 5
    receiver.behave("/hook", Behaviour())
    refused = await asyncio.gather(*(handshakes.ask(endpoint) for _ in range(3)))
    assert {answer.failure for answer in refused if answer is not None} == {Failure.HANDSHAKE}
    assert len(receiver.requests) == 2


async def test_who_waits_for_another_ones_answer_is_interrupted_with_that_one(
    seed: Seed, index: SubscriptionIndex, handshakes: Handshakes, receiver: Receiver
) -> None:
    hold = asyncio.Event()
    endpoint = await asking(seed, index, receiver.behave("/hook", Behaviour(consent=CONSENT, hold=hold)))
    first = asyncio.create_task(handshakes.ask(endpoint))
    await receiver.wait_for(1)
    waiting = asyncio.create_task(handshakes.ask(endpoint))
    interrupted = asyncio.create_task(handshakes.ask(endpoint))
    await asyncio.sleep(0)
    interrupted.cancel()  # this is its own trouble
    with pytest.raises(asyncio.CancelledError):
        await interrupted
    assert not first.done()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    with pytest.raises(asyncio.CancelledError):
        await waiting
    hold.set()


async def test_what_cannot_be_stored_is_no_consent(
    seed: Seed, store: Store, index: SubscriptionIndex, handshakes: Handshakes, receiver: Receiver
) -> None:
    """The fleet would not keep to the rate. Nothing is held against the endpoint: the fault is ours."""
    endpoint = await asking(seed, index, receiver.behave("/hook", Behaviour(consent=CONSENT)), timeout_s=1)
    endpoint = replace(endpoint, timeout_s=1)
    async with store.transaction() as connection:
        await locks.share_subscriptions(connection)  # an admission that takes longer than the attempt may
        answer = await handshakes.ask(endpoint)
    assert isinstance(answer, NoAnswer)
    assert answer.failure is Failure.INTERNAL
    assert answer.reason == "the endpoint agreed to take deliveries, which could not be stored: TimeoutError"
    assert (await seed.row("subscriptions", endpoint.id))["validated_at"] is None
    assert await handshakes.ask(endpoint) is None


@pytest.mark.parametrize(
    "meanwhile",
    ["url = 'https://example.com/elsewhere'", "handshake = false", "validated_at = now()", "deleted_at = now()"],
)
async def test_an_answer_counts_only_for_what_was_asked(seed: Seed, store: Store, meanwhile: str) -> None:
    key = await seed.subscription(url="https://example.com/hook", handshake=True)
    async with store.transaction() as connection:
        await connection.execute(f"UPDATE subscriptions SET {meanwhile} WHERE id = $1", key)
        version = await connection.fetchval("SELECT version FROM subscription_version")
        await subscriptions.agree(connection, key, url="https://example.com/hook", allowed_per_min=7)
        assert await connection.fetchval("SELECT version FROM subscription_version") == version
    assert (await seed.row("subscriptions", key))["allowed_per_min"] is None


async def test_a_limit_is_the_narrower_one_and_what_has_no_secret_that_signs_is_blocked(
    seed: Seed, store: Store, index: SubscriptionIndex
) -> None:
    limited = await seed.subscription(rate_per_s=1.0, rate_burst=5, allowed_per_min=62)
    assert (await compiled(store, index, limited)).limit == RateLimit(1, 3)
    hexed = {"scheme": "hmac", "algorithm": "sha1", "header": "X-S", "prefix": ""}
    unsigned = await seed.subscription(signature=hexed)  # with a whsec_ secret
    assert (await compiled(store, index, unsigned)).blocked == UNSIGNED


@pytest.mark.parametrize(
    ("columns", "seconds"),
    [
        ({"allowed_per_min": 6}, 10),
        ({"rate_per_s": 2.0, "rate_burst": 4, "allowed_per_min": 6}, 10),
        ({"rate_per_s": 0.1, "rate_burst": 4, "allowed_per_min": 600}, 40),
        ({"rate_per_s": 2.0, "rate_burst": 4}, 2),
        ({}, None),
    ],
)
async def test_a_lease_that_was_not_given_back_leaves_an_empty_bucket_of_what_is_allowed_too(
    seed: Seed, store: Store, columns: dict[str, object], seconds: int | None
) -> None:
    owner = await seed.dispatcher()
    key = await seed.subscription(feeder=owner, mode="held", **columns)
    async with store.connection() as connection:
        await connection.execute(sql.RELEASE_LEASES, owner)
        full_in_s = await connection.fetchval(
            "SELECT extract(epoch FROM paced_until - clock_timestamp())::float8 FROM subscriptions WHERE id = $1", key
        )
    if seconds is None:
        assert full_in_s is None
    else:
        assert seconds - 5 < full_in_s <= seconds
