"""Streaks over a real store, from outcomes that are settled. The fixture tells at 3 failures and disables at 5."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from msgspec import structs
from uuid_utils.compat import uuid7

from dispatcher.claims import Claims
from dispatcher.clock import wall
from dispatcher.core.conclude import Dead, Delivered, RetryIn, Verdict
from dispatcher.core.streak import Failures, Tally, Thresholds
from dispatcher.lanes import Lanes
from dispatcher.settlement import Attempted, Outcome, Settlement
from dispatcher.streaks import Streaks
from infra.store import operational, subscriptions
from infra.store.store import Store
from schemas.deliveries import Answered, AttemptResult, Failure, NoAnswer
from schemas.work import WorkItem
from tests.support.seed import Seed
from tests.support.waiting import eventually

URL = "https://example.com/hook"
NO: AttemptResult = Answered(500, b"no", None, 12, "127.0.0.1:1")
YES: AttemptResult = Answered(200, b"ok", None, 12, "127.0.0.1:1")
AGAIN = RetryIn(60, "the endpoint answered 500")

Attempt = Callable[..., Coroutine[None, None, None]]


@pytest.fixture
def settle(settlement: Settlement, claims: Claims, seed: Seed, lanes: Lanes) -> Attempt:
    """Settle a new delivery's first attempt."""

    async def settle(
        subscription: UUID,
        verdict: Verdict = AGAIN,
        result: AttemptResult = NO,
        *,
        url: str = URL,
        event_type: str = "order.created",
        lost: bool = False,
    ) -> None:
        delivery = await seed.delivery(subscription, status="retrying", event_type=event_type)
        (claim,) = await claims.due([WorkItem(delivery, 0, 1, 0)])
        if lost:
            async with seed.store.connection() as conn:
                await conn.execute("UPDATE deliveries SET fence = fence + 1 WHERE id = $1", delivery)
        lanes.place(claim.subscription, len(claim.content.data))
        lanes.take(claim)
        claim = structs.replace(claim, content=structs.replace(claim.content, type=event_type))
        settlement.add(Outcome(claim, verdict, Attempted(uuid7(), wall(), result, url)))
        await eventually(lambda: _true(lanes.free == 1000))

    return settle


@pytest.fixture
def attempt(settle: Attempt, streaks: Streaks) -> Attempt:
    """The same, and wait until all that follows from it is written."""

    async def attempt(*given: Any, **more: Any) -> None:
        await settle(*given, **more)
        await _idle(streaks)

    return attempt


async def _true(value: bool) -> bool:
    return value


async def _idle(streaks: Streaks) -> None:
    """Until a round of it that began after now is over."""
    for _ in range(2):
        streaks._wake.set()
        await eventually(lambda: _true(not streaks._wake.is_set()))


async def streak(seed: Seed, subscription: UUID) -> tuple[bool, int, bool]:
    row = await seed.row("subscriptions", subscription)
    return row["failing_since"] is not None, row["failures"], row["failing_told"]


async def told(store: Store) -> list[tuple[str, dict[str, Any]]]:
    async with store.transaction() as conn:
        taken = await operational.take(conn, 100)
        await operational.forget(conn, [row["id"] for row in taken])
    return [(row["type"].removeprefix("hookhare."), row["data"]) for row in taken]


@pytest.fixture
async def listener(seed: Seed, store: Store) -> UUID:
    key = await seed.subscription("hookhare.#")
    await told(store)
    return key


async def test_failures_are_counted_from_when_the_first_was_and_a_success_ends_them(
    attempt: Attempt, seed: Seed
) -> None:
    key = await seed.subscription()
    await attempt(key)
    began = (await seed.row("subscriptions", key))["failing_since"]
    await attempt(key)
    assert await streak(seed, key) == (True, 2, False)
    assert (await seed.row("subscriptions", key))["failing_since"] == began
    await attempt(key, Delivered(), YES)
    assert await streak(seed, key) == (False, 0, False)
    await attempt(key)
    assert await streak(seed, key) == (True, 1, False)
    assert (await seed.row("subscriptions", key))["failing_since"] > began


async def test_what_counts_as_a_failure(attempt: Attempt, seed: Seed) -> None:
    cases: list[tuple[dict[str, Any], int]] = [
        ({"verdict": Dead("final"), "result": Answered(404, b"", None, 1, None)}, 1),
        ({"result": NoAnswer(Failure.TIMEOUT, "the deadline passed", 1, None)}, 1),
        ({"result": NoAnswer(Failure.INTERNAL, "a fault of ours", 1, None)}, 0),
        ({"lost": True}, 0),  # superseded
        ({"url": "https://example.com/old"}, 0),  # what another URL answered
    ]
    for given, expected in cases:
        key = await seed.subscription()
        await attempt(key, **given)
        assert (await streak(seed, key))[1] == expected, given


async def test_a_success_counts_also_when_it_came_too_late_for_its_delivery(attempt: Attempt, seed: Seed) -> None:
    key = await seed.subscription(failures=4, failing_since=wall())
    await attempt(key, Delivered(), YES, lost=True)
    assert await streak(seed, key) == (False, 0, False)


async def test_what_another_url_took_ends_no_streak(attempt: Attempt, seed: Seed) -> None:
    key = await seed.subscription(failures=4, failing_since=wall())
    await attempt(key, Delivered(), YES, url="https://example.com/old")
    assert await streak(seed, key) == (True, 4, False)


async def test_a_success_ends_the_streak_in_its_own_commit_whoever_counted_it(
    settle: Attempt, seed: Seed, store: Store, listener: UUID
) -> None:
    """Nobody has to know of the streak: it is in the row."""
    key = await seed.subscription(failures=4, failing_since=wall(), failing_told=True)
    await told(store)
    await settle(key, Delivered(), YES)
    assert await streak(seed, key) == (False, 0, False)
    ((kind, data),) = await told(store)
    assert (kind, data["failures"]) == ("subscription.recovered", 4)


async def test_a_success_waits_for_nobody_who_has_the_row_and_ends_the_streak_later(
    settle: Attempt, seed: Seed, store: Store, listener: UUID
) -> None:
    """Who has it may stand still; and whoever counts just now counts what failed before."""
    key = await seed.subscription(failures=4, failing_since=wall(), failing_told=True)
    await told(store)
    async with store.transaction() as other:
        await other.execute("UPDATE subscriptions SET failures = 9 WHERE id = $1", key)
        await settle(key, Delivered(), YES)
        assert await streak(seed, key) == (True, 4, True)

    async def ended() -> bool:
        return await streak(seed, key) == (False, 0, False)

    await eventually(ended)
    ((kind, data),) = await told(store)
    assert (kind, data["failures"]) == ("subscription.recovered", 9)


async def test_a_streak_whose_end_got_lost_disables_nothing_and_begins_anew(
    attempt: Attempt, settle: Attempt, seed: Seed, store: Store
) -> None:
    """Its dispatcher died before the ending was written; the history has what was delivered."""
    began = wall() - timedelta(hours=1)
    key = await seed.subscription()
    await settle(key, Delivered(), YES)
    async with store.connection() as conn:
        await conn.execute("UPDATE subscriptions SET failures = 9, failing_since = $2 WHERE id = $1", key, began)
    await attempt(key)
    assert await streak(seed, key) == (False, 0, False)
    assert (await seed.row("subscriptions", key))["state"] == "enabled"


async def test_nobody_who_stands_still_with_one_row_keeps_other_streaks_from_ending(
    settle: Attempt, seed: Seed, store: Store
) -> None:
    stuck, free = [await seed.subscription(failures=4, failing_since=wall()) for _ in range(2)]
    change = "UPDATE subscriptions SET description = 'new' WHERE id = $1"

    async def ended() -> bool:
        return await streak(seed, free) == (False, 0, False)

    async with store.transaction() as still:
        await still.execute(change, stuck)
        async with store.transaction() as other:
            await other.execute(change, free)
            for key in (stuck, free):
                await settle(key, Delivered(), YES)
        await eventually(ended)


async def test_settling_waits_for_nobody_who_has_the_row_of_an_endpoint_that_fails(
    settle: Attempt, seed: Seed, store: Store
) -> None:
    """What fails is counted after the commit: the other outcomes of the batch would wait as well."""
    key = await seed.subscription()
    async with store.transaction() as other:
        await other.execute("UPDATE subscriptions SET description = 'new' WHERE id = $1", key)
        await settle(key)
        assert (await streak(seed, key))[1] == 0

    async def counted() -> bool:
        return (await streak(seed, key))[1] == 1

    await eventually(counted)


async def test_a_streak_is_told_once_and_its_end_once(
    attempt: Attempt, seed: Seed, store: Store, listener: UUID
) -> None:
    key = await seed.subscription()
    await told(store)
    for _ in range(2):
        await attempt(key)
        assert await told(store) == []
    await attempt(key)
    ((kind, data),) = await told(store)
    assert (kind, data["subscription_id"], data["failures"], data["state"]) == (
        "subscription.failing",
        str(key),
        3,
        "enabled",
    )
    assert data["failing_since"].endswith("Z")
    await attempt(key)
    assert await told(store) == []
    assert await streak(seed, key) == (True, 4, True)
    await attempt(key, Delivered(), YES)
    ((kind, ended),) = await told(store)
    assert (kind, ended["failures"], ended["failing_since"]) == ("subscription.recovered", 4, data["failing_since"])
    await attempt(key, Delivered(), YES)
    assert await told(store) == []


async def test_the_end_of_a_streak_that_was_not_told_is_not_told(
    attempt: Attempt, seed: Seed, store: Store, listener: UUID
) -> None:
    key = await seed.subscription()
    await told(store)
    await attempt(key)
    await attempt(key, Delivered(), YES)
    assert await told(store) == []


async def test_a_streak_of_operational_events_alone_is_not_told_but_disables(
    attempt: Attempt, seed: Seed, store: Store, listener: UUID
) -> None:
    key = await seed.subscription("hookhare.#")
    await told(store)
    for _ in range(4):
        await attempt(key, event_type="hookhare.subscription.updated")
    assert await told(store) == []
    await attempt(key, event_type="hookhare.subscription.updated")
    dead = await told(store)
    assert [kind for kind, _ in dead] == ["subscription.disabled"]  # and no word of the deliveries that die with it


async def test_a_streak_that_is_long_enough_disables_and_what_waits_dies_with_the_reason(
    attempt: Attempt, seed: Seed, store: Store, listener: UUID
) -> None:
    key = await seed.subscription()
    bystander = await seed.subscription()
    waiting = await seed.delivery(key)
    elsewhere = await seed.delivery(bystander)
    await told(store)
    for _ in range(4):
        await attempt(key)
    assert (await seed.row("subscriptions", key))["state"] == "enabled"
    await attempt(key, RetryIn(60, "connection refused"))
    row = await seed.row("subscriptions", key)
    assert row["state"] == "disabled"
    assert row["state_reason"].startswith("every attempt has failed since ")
    assert row["state_reason"].endswith(", 5 of them; the last: connection refused")
    assert await streak(seed, key) == (False, 0, False)
    delivery = await seed.row("deliveries", waiting)
    assert (delivery["status"], delivery["reason"]) == ("dead", row["state_reason"])
    assert (await seed.row("deliveries", elsewhere))["status"] == "held"
    kinds = [kind for kind, _ in await told(store)]
    assert kinds.count("subscription.disabled") == 1
    assert kinds.count("delivery.dead") == 6
    # What was under way comes late, and begins nothing.
    await attempt(key)
    assert await streak(seed, key) == (False, 0, False)


async def test_both_the_time_and_the_count_are_needed(seed: Seed, store: Store) -> None:
    """The same five failures, and a time that is not over."""
    key = await seed.subscription()
    patient = Streaks(store, Thresholds(3, 3600, 5, 3600), period_s=0.01)
    running = asyncio.create_task(patient.run())

    patient.observe(Tally(failures={(key, URL): Failures(50, ordinary=True, last="500")}))
    patient.stop()
    await running
    assert await streak(seed, key) == (True, 50, False)
    assert (await seed.row("subscriptions", key))["state"] == "enabled"


async def test_a_stopping_dispatcher_writes_what_it_has_counted(seed: Seed, store: Store) -> None:
    key = await seed.subscription()
    leaving = Streaks(store, Thresholds(3, 0, 5, 0), period_s=3600)
    running = asyncio.create_task(leaving.run())

    for _ in range(2):
        leaving.observe(Tally(failures={(key, URL): Failures(1, ordinary=True, last="500")}))
        await asyncio.sleep(0)
    leaving.stop()
    await asyncio.wait_for(running, 10)
    assert await streak(seed, key) == (True, 2, False)


async def test_enabled_again_one_failure_disables_nothing(attempt: Attempt, seed: Seed, store: Store) -> None:
    key = await seed.subscription()
    for _ in range(5):
        await attempt(key)
    assert (await seed.row("subscriptions", key))["state"] == "disabled"
    async with store.transaction() as conn:
        row = await subscriptions.lock_for_change(conn, key)
        assert isinstance(row, subscriptions.SubscriptionRow)

        await subscriptions.save(conn, replace(row, state="enabled", state_reason=None))
    await attempt(key)
    assert await streak(seed, key) == (True, 1, False)
    assert (await seed.row("subscriptions", key))["state"] == "enabled"


async def test_many_dispatchers_that_count_at_once_count_each_failure(seed: Seed, store: Store) -> None:
    """Among so many subscriptions that each row is found by its key: in order, or two wait for each other."""
    keys = [await seed.subscription() for _ in range(40)]
    async with store.connection() as conn:
        await conn.execute(
            """
            INSERT INTO subscriptions (id, tenant, url, event_types, timeout_s, retry_policy, secrets, version)
            SELECT gen_random_uuid(), 'default', $1, '{}', 1, '{}', '', 0 FROM generate_series(1, 5000)
            """,
            URL,
        )
        await conn.execute("ANALYZE subscriptions")
    fleet = [Streaks(store, Thresholds(3, 0, 1000, 0), period_s=0.01) for _ in range(4)]
    running = [asyncio.create_task(one.run()) for one in fleet]
    for turn in range(10):
        for number, one in enumerate(fleet):
            order = keys if (turn + number) % 2 else keys[::-1]  # in any order, and no deadlock
            one.observe(Tally(failures={(key, URL): Failures(1, ordinary=True, last="500") for key in order}))
        await asyncio.sleep(0.01)
    for one in fleet:
        one.stop()
    await asyncio.gather(*running)
    assert [await streak(seed, key) for key in keys] == [(True, 40, True)] * 40
