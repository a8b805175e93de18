"""Replay, retry by hand, cancel, and ending what a subscription leaves behind."""

import asyncio
from typing import Any
from uuid import UUID

import orjson
import pytest
from uuid_utils.compat import uuid7

from infra.store import deliveries
from infra.store.outcomes import Missing, Refused
from infra.store.store import Store
from schemas.deliveries import Status
from schemas.ids import delivery_key
from tests.support import rows
from tests.support.rows import Claim
from tests.support.waiting import eventually

ENDED = ("delivered", "dead", "canceled")
UNFINISHED = ("pending", "held", "retrying")


@pytest.mark.parametrize("status", ENDED)
async def test_a_replay_begins_an_ended_delivery_again_as_held_in_a_new_cycle(store: Store, status: str) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key = await rows.add_delivery(conn, subscription, status, attempts=10, cycle=2)
    async with store.transaction() as conn:
        assert await deliveries.replay(conn, [key]) == [key]
    async with store.connection() as conn:
        row = await rows.delivery(conn, key)
        assert (row["status"], row["cycle"], row["attempts"]) == ("held", 3, 0)
        assert (row["reason"], row["next_attempt_at"], row["hint_due_at"]) == (None, None, None)
        assert await rows.mode(conn, subscription) == "held"


async def test_a_replay_leaves_a_live_claim_and_its_fence_alone(store: Store) -> None:
    claim = Claim(uuid7(), fence=7)
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key = await rows.add_delivery(conn, subscription, "dead", claim=claim)
        before = await rows.delivery(conn, key)
        assert await deliveries.replay(conn, [key]) == [key]
        after = await rows.delivery(conn, key)
    assert (after["claimed_by"], after["claimed_at"], after["fence"]) == (claim.by, before["claimed_at"], 7)


@pytest.mark.parametrize("status", UNFINISHED)
async def test_a_replay_passes_over_what_has_not_ended(store: Store, status: str) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key = await rows.add_delivery(conn, subscription, status, claim=Claim(uuid7()))
        before = await rows.delivery(conn, key)
        assert await deliveries.replay(conn, [key]) == []
        assert await rows.delivery(conn, key) == before
        assert await rows.mode(conn, subscription) == "open"
        assert await deliveries.why_not_replayed(conn, key) == Refused(
            f"the delivery is {status}; only one that has ended can be replayed"
        )


@pytest.mark.parametrize(
    ("change", "word"),
    [("state = 'paused'", "paused"), ("state = 'disabled'", "disabled"), ("deleted_at = now()", "deleted")],
)
async def test_a_replay_passes_over_subscriptions_that_are_not_enabled(store: Store, change: str, word: str) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key = await rows.add_delivery(conn, subscription, "dead")
        await conn.execute(f"UPDATE subscriptions SET {change}")
        assert await deliveries.replay(conn, [key]) == []
        why = await deliveries.why_not_replayed(conn, key)
        assert isinstance(why, Refused)
        assert word in why.reason
        assert (await rows.letters(conn, key))[0]["state"] == "open"


async def test_a_replay_of_what_is_not_there_is_none(store: Store) -> None:
    async with store.transaction() as conn:
        assert await deliveries.replay(conn, []) == []
        assert await deliveries.replay(conn, [uuid7()]) == []
        assert await deliveries.why_not_replayed(conn, uuid7()) == Missing()


async def test_a_replay_takes_from_a_mixed_batch_what_it_may_and_each_once(store: Store) -> None:
    async with store.transaction() as conn:
        one, two = [(await rows.add_subscription(conn)).id for _ in range(2)]
        dead = [await rows.add_delivery(conn, subscription, "dead") for subscription in (two, one)]
        held = await rows.add_delivery(conn, one, "held")
        asked = [*dead, held, uuid7(), *dead]
        assert await deliveries.replay(conn, asked) == sorted(dead)
        assert [(await rows.delivery(conn, key))["cycle"] for key in dead] == [1, 1]


async def test_the_dead_letter_of_a_replayed_delivery_becomes_replayed(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key, other = [await rows.add_delivery(conn, subscription, "dead") for _ in range(2)]
        await deliveries.replay(conn, [key])
        (letter,) = await rows.letters(conn, key)
        assert letter["state"] == "replayed"
        assert letter["settled_at"] is not None
        assert (await rows.letters(conn, other))[0]["state"] == "open"


async def test_a_replay_locks_the_subscription_although_it_is_held_already(store: Store) -> None:
    """The lock is what closes the race with the feeder, which finds the backlog empty and opens the endpoint."""
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        await conn.execute("UPDATE subscriptions SET mode = 'held'")
        key = await rows.add_delivery(conn, subscription, "dead")
    async with store.transaction() as feeder:
        await feeder.execute("SELECT 1 FROM subscriptions WHERE id = $1 FOR NO KEY UPDATE", subscription)
        replaying = asyncio.create_task(_replay(store, key))
        await _until_waiting(store)
        assert await feeder.fetchval("SELECT count(*) FROM deliveries WHERE status = 'held'") == 0
        await feeder.execute("UPDATE subscriptions SET mode = 'open'")
    await replaying
    async with store.connection() as conn:
        assert await rows.mode(conn, subscription) == "held"


async def test_a_replay_and_a_disabling_at_once_end_with_no_held_row(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key = await rows.add_delivery(conn, subscription, "dead")
    async with store.transaction() as conn:
        await deliveries.replay(conn, [key])
        disabling = asyncio.create_task(_disable(store, subscription))
        await _until_waiting(store)
    await disabling
    async with store.connection() as conn:
        assert (await rows.delivery(conn, key))["status"] == "dead"
        assert [letter["cycle"] for letter in await rows.letters(conn, key)] == [0, 1]


async def test_replays_of_the_same_deliveries_at_once_neither_deadlock_nor_replay_twice(store: Store) -> None:
    async with store.transaction() as conn:
        ids = [(await rows.add_subscription(conn)).id for _ in range(3)]
        keys = [await rows.add_delivery(conn, subscription, "dead") for subscription in ids for _ in range(20)]
    results = await asyncio.gather(*(_replay(store, *order) for order in (keys, keys[::-1], keys[30:] + keys[:30])))
    assert sorted(key for result in results for key in result) == sorted(keys)


async def _replay(store: Store, *keys: UUID) -> list[UUID]:
    async with store.transaction() as conn:
        return await deliveries.replay(conn, keys)


async def _disable(store: Store, subscription: UUID) -> None:
    from infra.store import subscriptions

    async with store.transaction() as conn:
        await subscriptions.disable(conn, subscription, url=rows.HOOK_URL, reason="it answered 410")


async def _until_waiting(store: Store) -> None:
    """Until somebody waits for a lock."""

    async def waits() -> bool:
        async with store.connection() as conn:
            return bool(await conn.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await eventually(waits)


@pytest.mark.parametrize("status", ["held", "retrying"])
async def test_retry_now_holds_an_unfinished_delivery_in_the_same_cycle(store: Store, status: str) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key = await rows.add_delivery(conn, subscription, status, attempts=3, cycle=1)
        row = await deliveries.retry_now(conn, key)
        assert isinstance(row, deliveries.DeliveryRow)
        assert (row.status, row.attempts, row.cycle, row.next_attempt_at) == ("held", 3, 1, None)
        assert (await rows.delivery(conn, key))["hint_due_at"] is None
        assert await rows.mode(conn, subscription) == "held"


async def test_retry_now_refuses_what_is_attempted_has_ended_or_has_nowhere_to_go(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        claimed = await rows.add_delivery(conn, subscription, "retrying", claim=Claim(uuid7()))
        ended = await rows.add_delivery(conn, subscription, "delivered")
        waiting = await rows.add_delivery(conn, subscription, "retrying")
        before = await rows.delivery(conn, claimed)
        assert await deliveries.retry_now(conn, claimed) == Refused("the delivery is being attempted just now")
        assert await rows.delivery(conn, claimed) == before
        why = await deliveries.retry_now(conn, ended)
        assert isinstance(why, Refused)
        assert "delivered" in why.reason
        assert await deliveries.retry_now(conn, uuid7()) == Missing()
        await conn.execute("UPDATE subscriptions SET state = 'disabled'")
        assert await deliveries.retry_now(conn, waiting) == Refused("its subscription is deleted or disabled")


@pytest.mark.parametrize("status", UNFINISHED)
async def test_cancel_ends_an_unfinished_delivery_and_leaves_its_claim(store: Store, status: str) -> None:
    claim = Claim(uuid7(), fence=4)
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        key = await rows.add_delivery(conn, subscription, status, claim=claim)
        await deliveries.cancel(conn, key)
        row = await rows.delivery(conn, key)
    assert (row["status"], row["reason"]) == ("canceled", "canceled by operator")
    assert (row["claimed_by"], row["fence"], row["next_attempt_at"]) == (claim.by, 4, None)


@pytest.mark.parametrize("status", ENDED)
async def test_cancel_refuses_what_has_ended(store: Store, status: str) -> None:
    async with store.transaction() as conn:
        key = await rows.add_delivery(conn, (await rows.add_subscription(conn)).id, status)
        why = await deliveries.cancel(conn, key)
        assert isinstance(why, Refused)
        assert status in why.reason
        assert await deliveries.cancel(conn, uuid7()) == Missing()


async def test_ending_is_bounded_and_goes_on_where_it_stopped(store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        keys = [await rows.add_delivery(conn, subscription, "held") for _ in range(5)]
        ended = await deliveries.end_unfinished(conn, subscription, status=Status.DEAD, reason="gone", limit=3)
        assert ended == 3
        assert sorted([(await rows.delivery(conn, key))["status"] for key in keys]) == ["dead"] * 3 + ["held"] * 2
        assert await deliveries.end_unfinished(conn, subscription, status=Status.DEAD, reason="gone") == 2
        assert await deliveries.end_unfinished(conn, subscription, status=Status.DEAD, reason="gone") == 0


async def test_ending_a_million_rows_history_uses_the_indexes_of_what_is_unfinished(store: Store) -> None:
    """The statement must not walk the whole history of a subscription: that would outlast every timeout."""
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        event = await rows.add_event(conn)
        await _fill_history(conn, subscription, event, 20_000)
        await rows.add_delivery(conn, subscription, "held", event=event)
    async with store.connection() as conn:
        await conn.execute("ANALYZE deliveries")
        plan = await conn.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {deliveries._LOCK_UNFINISHED}", subscription, 5000)
    (planned,) = orjson.loads(plan)  # of type json, which has no codec of ours
    assert _removed(planned["Plan"]) < 1000


async def _fill_history(conn: Any, subscription: UUID, event: UUID, number: int) -> None:
    keys = [delivery_key(event, uuid7()) for _ in range(number)]
    await conn.execute(
        """
        INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence)
        SELECT id, $2, $3, 'default', 'order.created', 'delivered', 1, 0, 1 FROM unnest($1::uuid[]) AS new(id)
        """,
        keys,
        event,
        subscription,
    )


def _removed(plan: dict[str, Any]) -> int:
    """Rows that were read and thrown away, in the whole plan."""
    here = int(plan.get("Rows Removed by Filter", 0)) + int(plan.get("Rows Removed by Index Recheck", 0))
    return here + sum(_removed(part) for part in plan.get("Plans", ()))
