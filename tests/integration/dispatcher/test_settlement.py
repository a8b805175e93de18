"""Settlement over a real store: rows, attempts, dead letters and hints of each outcome."""

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from msgspec import structs
from msgspec.structs import replace
from uuid_utils.compat import uuid7

from dispatcher.claims import Claims
from dispatcher.clock import wall
from dispatcher.core.conclude import Dead, Delivered, Expired, Held, RetryIn, Verdict
from dispatcher.lanes import Claim, Lanes
from dispatcher.settlement import Attempted, Outcome, Settlement
from infra.broker.base import ToDead, ToWorkAfter
from infra.store.history import attempts_of
from infra.store.store import Store
from schemas.deliveries import Answered, Failure, NoAnswer, Timings
from schemas.errors import StoreUnavailable
from schemas.work import WorkItem, decode_work
from tests.support.seed import Seed
from tests.support.silent_broker import SilentBroker
from tests.support.waiting import eventually

Settle = Callable[[Claim, Verdict], Awaitable[None]]


def attempted(status: int = 500, body: bytes = b"no") -> Attempted:
    return Attempted(uuid7(), wall(), Answered(status, body, None, 12, "127.0.0.1:1"), "https://example.com/hook")


@pytest.fixture
async def claim(claims: Claims, seed: Seed, lanes: Lanes) -> Claim:
    """A claim on the second attempt of a delivery, with its place in hand."""
    delivery = await seed.delivery(await seed.subscription(), status="retrying", attempts=1)
    (claim,) = await claims.due([WorkItem(delivery, 0, 2, 0)])
    lanes.place(claim.subscription, len(claim.content.data))
    lanes.in_hand[claim.delivery] = claim
    return claim


@pytest.fixture
def settle(settlement: Settlement, lanes: Lanes) -> Settle:
    async def settle(claim: Claim, verdict: Verdict) -> None:
        settlement.add(Outcome(claim, verdict, None if isinstance(verdict, Held | Expired) else attempted()))

        async def done() -> bool:
            return claim.delivery not in lanes.in_hand

        await eventually(done)

    return settle


async def letters(store: Store, delivery: UUID) -> list[tuple[str, bool]]:
    async with store.connection() as connection:
        rows = await connection.fetch("SELECT * FROM dead_letters WHERE delivery_id = $1", delivery)
    return [(row["reason"], row["published_at"] is not None) for row in rows]


async def attempts(store: Store, delivery: UUID) -> list[tuple[int, str, bool]]:
    async with store.connection() as connection:
        rows = await connection.fetch("SELECT * FROM attempts WHERE delivery_id = $1 ORDER BY id", delivery)
    return [(row["number"], row["outcome"], row["superseded"]) for row in rows]


async def test_delivered(settle: Settle, claim: Claim, seed: Seed, store: Store) -> None:
    await settle(claim, Delivered())
    row = await seed.row("deliveries", claim.delivery)
    assert (row["status"], row["attempts"], row["claimed_by"], row["fence"]) == ("delivered", 2, None, 1)
    assert await attempts(store, claim.delivery) == [(2, "delivered", False)]


@pytest.mark.parametrize("short_of_places", [False, True])
async def test_a_patient_outcome_is_committed_with_the_next_that_is_not(
    settlement: Settlement, claim: Claim, claims: Claims, seed: Seed, store: Store, lanes: Lanes, short_of_places: bool
) -> None:
    """And by itself after a moment when none comes; at once while its place is needed."""
    if short_of_places:
        for _ in range(60):  # a sixteenth of 1,000
            lanes.place(claim.subscription, 0)
    other = await seed.delivery(claim.subscription, status="retrying", attempts=0)
    (neighbour,) = await claims.due([WorkItem(other, 0, 1, 0)])
    lanes.place(claim.subscription, len(neighbour.content.data))
    lanes.take(neighbour)
    settlement.add(Outcome(claim, Delivered(), attempted(200)), patient=True)
    for _ in range(10):
        await asyncio.sleep(0)  # time enough to begin its commit
    settlement.add(Outcome(neighbour, Delivered(), attempted(200)))
    await eventually(lambda: ended(lanes, claim, neighbour))
    async with store.connection() as connection:
        rows = await connection.fetch("SELECT DISTINCT xmin FROM deliveries WHERE status = 'delivered'")
    assert len(rows) == (2 if short_of_places else 1)

    third = await seed.delivery(claim.subscription, status="retrying", attempts=0)
    (alone,) = await claims.due([WorkItem(third, 0, 1, 0)])
    lanes.place(claim.subscription, len(alone.content.data))
    lanes.take(alone)
    settlement.add(Outcome(alone, Delivered(), attempted(200)), patient=True)
    await eventually(lambda: ended(lanes, alone))


async def ended(lanes: Lanes, *claims: Claim) -> bool:
    return not any(one.delivery in lanes.in_hand for one in claims)


async def test_an_attempt_keeps_what_the_answers_head_said_and_where_the_time_went(
    settlement: Settlement, claim: Claim, claims: Claims, seed: Seed, store: Store, lanes: Lanes
) -> None:
    """In one batch with an attempt that got no answer: each has its own."""
    other = await seed.delivery(claim.subscription, status="retrying", attempts=0)
    (neighbour,) = await claims.due([WorkItem(other, 0, 1, 0)])
    lanes.place(claim.subscription, len(neighbour.content.data))
    said = {"server": "caf\ufffd", "retry-after": "120"}
    answered = Answered(503, b"no", "120", 999, "127.0.0.1:1", said, Timings(1, 20, 300, 600))
    silent = NoAnswer(Failure.TIMEOUT, "too slow", 1000, "127.0.0.1:1", Timings(connect_ms=7))
    for one, result in ((claim, answered), (neighbour, silent)):
        settlement.add(Outcome(one, RetryIn(60, "no"), Attempted(uuid7(), wall(), result, "https://example.com/hook")))

    async def told() -> list[tuple[object, ...]]:
        async with store.connection() as connection:
            found = [await attempts_of(connection, one.delivery, limit=2) for one in (claim, neighbour)]
        rows = [row for rows in found for row in rows]
        return [(row.response_headers, row.dns_ms, row.connect_ms, row.tls_ms, row.first_byte_ms) for row in rows]

    async def both() -> bool:
        return len(await told()) == 2

    await eventually(both)
    assert await told() == [(said, 1, 20, 300, 600), (None, None, 7, None, None)]


async def test_a_retry_is_committed_and_then_its_hint_goes_up_the_ladder(
    settle: Settle, claim: Claim, seed: Seed, broker: SilentBroker
) -> None:
    await settle(claim, RetryIn(4.5, "the endpoint answered 500"))
    row = await seed.row("deliveries", claim.delivery)
    assert (row["status"], row["attempts"], row["claimed_by"]) == ("retrying", 2, None)
    assert row["next_attempt_at"] < row["hint_due_at"]

    async def hinted() -> bool:
        return len(broker.sent) == 1

    await eventually(hinted)
    (sent,) = broker.sent
    assert sent.to == ToWorkAfter(4.5)
    item = decode_work(sent.message)
    assert item is not None
    assert (item.delivery, item.cycle, item.attempt) == (claim.delivery, 0, 3)


async def test_a_death_leaves_one_dead_letter_that_is_published_and_marked(
    settle: Settle, claim: Claim, seed: Seed, store: Store, broker: SilentBroker
) -> None:
    await settle(claim, Dead("attempts used up"))
    assert (await seed.row("deliveries", claim.delivery))["status"] == "dead"

    async def marked() -> bool:
        return await letters(store, claim.delivery) == [("attempts used up", True)]

    await eventually(marked)
    assert [sent.to for sent in broker.sent] == [ToDead("delivery")]


async def test_what_expired_is_dead_with_a_letter_and_no_attempt_is_counted(
    settle: Settle, claim: Claim, seed: Seed, store: Store, broker: SilentBroker
) -> None:
    await settle(claim, Expired("expired: too old"))
    row = await seed.row("deliveries", claim.delivery)
    assert (row["status"], row["attempts"], row["reason"]) == ("dead", 1, "expired: too old")
    assert (row["claimed_by"], row["next_attempt_at"]) == (None, None)
    assert await attempts(store, claim.delivery) == []

    async def marked() -> bool:
        return await letters(store, claim.delivery) == [("expired: too old", True)]

    await eventually(marked)
    assert [sent.to for sent in broker.sent] == [ToDead("delivery")]


async def test_a_dead_letter_that_the_broker_does_not_take_stays_unmarked(
    settle: Settle, claim: Claim, store: Store, broker: SilentBroker
) -> None:
    broker.refuses = True
    await settle(claim, Dead("attempts used up"))
    assert await letters(store, claim.delivery) == [("attempts used up", False)]


async def test_held_holds_the_endpoint_in_the_same_commit(settle: Settle, claim: Claim, seed: Seed) -> None:
    await settle(claim, Held("full"))
    row = await seed.row("deliveries", claim.delivery)
    assert (row["status"], row["attempts"], row["reason"], row["claimed_by"]) == ("held", 1, "full", None)
    assert (await seed.row("subscriptions", claim.subscription))["mode"] == "held"


async def test_who_lost_the_fence_records_the_attempt_as_superseded(
    settle: Settle, claim: Claim, seed: Seed, store: Store
) -> None:
    async with store.connection() as connection:
        await connection.execute("UPDATE deliveries SET fence = fence + 1 WHERE id = $1", claim.delivery)
    await settle(claim, RetryIn(60, "late"))
    row = await seed.row("deliveries", claim.delivery)
    assert (row["status"], row["attempts"]) == ("retrying", 1)
    assert row["claimed_by"] is not None  # the new owner's
    assert await attempts(store, claim.delivery) == [(2, "retry", True)]


async def test_who_lost_the_fence_sends_no_hint_for_the_retry_of_who_has_it(
    settlement: Settlement, settle: Settle, claim: Claim, seed: Seed, store: Store, lanes: Lanes, broker: SilentBroker
) -> None:
    """Its own would come after five seconds, and the endpoint asked the new owner for an hour."""
    lanes.place(claim.subscription, len(claim.content.data))
    newer = structs.replace(claim, held=replace(claim.held, fence=claim.held.fence + 1))
    async with store.connection() as connection:
        await connection.execute("UPDATE deliveries SET fence = fence + 1 WHERE id = $1", claim.delivery)
    settlement.add(Outcome(newer, RetryIn(3600, "the endpoint answered 429"), attempted(429)))

    async def hinted() -> bool:
        return len(broker.sent) == 1

    await eventually(hinted)
    await settle(claim, RetryIn(5, "the endpoint answered 500"))
    assert [sent for sent, _, superseded in await attempts(store, claim.delivery) if superseded] == [2]
    await settlement._hints.finish(limit_s=5)
    assert [sent.to for sent in broker.sent] == [ToWorkAfter(3600)]


async def test_two_outcomes_of_one_delivery_in_one_batch(
    settlement: Settlement, claim: Claim, seed: Seed, store: Store, lanes: Lanes
) -> None:
    """One of them lost its fence: the rules apply one after the other, and one row is written."""
    lanes.place(claim.subscription, len(claim.content.data))
    stale = structs.replace(claim, held=replace(claim.held, fence=0))
    settlement.add(Outcome(claim, RetryIn(60, "no"), attempted()))
    settlement.add(Outcome(stale, Delivered(), attempted(200)))

    async def both() -> bool:
        return len(await attempts(store, claim.delivery)) == 2

    await eventually(both)
    assert (await seed.row("deliveries", claim.delivery))["status"] == "delivered"


async def test_an_outcome_waits_for_the_database_and_is_recorded_once(
    settle: Settle, claim: Claim, seed: Seed, store: Store, lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a commit that took effect is lost, and then the database is away for a while."""
    real, failures = store.transaction, ["after", "before", "before"]

    def transaction() -> object:
        return _Faulty(real(), failures.pop(0) if failures else None)

    monkeypatch.setattr(store, "transaction", transaction)
    await settle(claim, RetryIn(60, "the endpoint answered 500"))
    assert not failures
    row = await seed.row("deliveries", claim.delivery)
    assert (row["status"], row["attempts"]) == ("retrying", 2)
    assert await attempts(store, claim.delivery) == [(2, "retry", False)]
    assert lanes.free == 1000


async def test_an_outcome_that_cannot_be_stored_keeps_nobody_back(
    settlement: Settlement, claim: Claim, claims: Claims, seed: Seed, lanes: Lanes
) -> None:
    other = await seed.delivery(claim.subscription, status="retrying", attempts=0)
    (neighbour,) = await claims.due([WorkItem(other, 0, 1, 0)])
    for one in (claim, neighbour):
        lanes.in_hand[one.delivery] = one
    lanes.place(claim.subscription, len(neighbour.content.data))
    impossible = Attempted(uuid7(), wall(), Answered(99_999, b"", None, 1, None), "https://example.com/hook")
    settlement.add(Outcome(claim, RetryIn(60, "no"), impossible))  # a status beyond smallint
    settlement.add(Outcome(neighbour, Delivered(), attempted(200)))

    async def neighbour_settled() -> bool:
        return bool((await seed.row("deliveries", other))["status"] == "delivered")

    await eventually(neighbour_settled)

    async def settled_without_its_record() -> bool:
        return bool((await seed.row("deliveries", claim.delivery))["attempts"] == 2)

    await eventually(settled_without_its_record)


class _Faulty:
    """A transaction whose commit fails before it takes effect, or after."""

    def __init__(self, real: object, fault: str | None) -> None:
        self._real = real
        self._fault = fault

    async def __aenter__(self) -> object:
        if self._fault == "before":
            await asyncio.sleep(0)
            raise StoreUnavailable("away")
        return await self._real.__aenter__()  # type: ignore[attr-defined]

    async def __aexit__(self, *exc: object) -> None:
        await self._real.__aexit__(*exc)  # type: ignore[attr-defined]
        if self._fault == "after":
            raise StoreUnavailable("the answer was lost")
