"""Operational events in their outbox: written with the change, for those tenants that somebody listens in."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from infra.store import deliveries, operational, partitions, subscriptions
from infra.store.store import Store
from infra.store.subscriptions import SubscriptionRow
from schemas.deliveries import Status
from tests.support import rows

LISTENER = {"event_types": ["order.#", "hookhare.#"]}


async def _told(conn: asyncpg.Connection, *of: str) -> list[tuple[str, dict[str, Any]]]:
    """What is told, in order, or those of some types, and then forgotten."""
    taken = await operational.take(conn, 1_000)
    await operational.forget(conn, [row["id"] for row in taken])
    return [(row["type"], row["data"]) for row in taken if not of or row["type"] in of]


async def _changed(conn: asyncpg.Connection, key: UUID, **changes: Any) -> SubscriptionRow:
    row = await subscriptions.lock_for_change(conn, key)
    assert isinstance(row, SubscriptionRow)
    return await subscriptions.save(conn, replace(row, **changes))


async def _fail(conn: asyncpg.Connection, key: UUID) -> None:
    await conn.execute(
        "UPDATE subscriptions SET failing_since = '2026-01-31T12:00:00Z', failures = 7, failing_told = true,"
        " breaker_until = now() WHERE id = $1",
        key,
    )


async def test_each_change_of_a_subscription_is_told_with_the_change(store: Store) -> None:
    async with store.transaction() as conn:
        listener = await rows.add_subscription(conn, **LISTENER)
        ((kind, data),) = await _told(conn)  # also to itself: it is there before its event is
        assert (kind, data["subscription_id"]) == ("hookhare.subscription.created", str(listener.id))
        key = (await rows.add_subscription(conn, url="https://example.com/hook?token=s3cret")).id
        await _changed(conn, key, description="new")
        await _changed(conn, key, state="paused", state_reason="paused by operator")
        await _changed(conn, key, state="disabled", state_reason="disabled by operator")
        await _changed(conn, key, description="newer")
        await _changed(conn, key, state="enabled", state_reason=None)
        await subscriptions.delete(conn, key, no_secrets=b"")
        told = await _told(conn)
    assert [(kind.removeprefix("hookhare.subscription."), data["state"], data["reason"]) for kind, data in told] == [
        ("created", "enabled", None),
        ("updated", "enabled", None),
        ("updated", "paused", "paused by operator"),
        ("disabled", "disabled", "disabled by operator"),
        ("updated", "disabled", "disabled by operator"),
        ("updated", "enabled", None),
        ("deleted", "enabled", None),
    ]
    assert {data["subscription_id"] for _, data in told} == {str(key)}
    assert "s3cret" not in repr(told)
    assert told[0][1] == {
        "subscription_id": str(key),
        "url": "https://example.com/hook",
        "event_types": ["order.#"],
        "state": "enabled",
        "reason": None,
        "failures": 0,
        "failing_since": None,
    }


async def test_what_is_rolled_back_was_never_told(store: Store) -> None:
    async with store.transaction() as conn:
        await rows.add_subscription(conn, **LISTENER)
        await _told(conn)
    async with store.connection() as conn:
        undone = conn.transaction()
        await undone.start()
        await rows.add_subscription(conn)
        assert await conn.fetchval("SELECT count(*) FROM operational_events") == 1
        await undone.rollback()
    async with store.transaction() as conn:
        assert await _told(conn) == []


@pytest.mark.parametrize(
    "listener",
    [
        None,
        {"tenant": "other", "event_types": ["hookhare.#"]},
        {"event_types": ["#", "*.delivery.dead", "hookhares.#"]},  # none of them reaches such a type
    ],
)
async def test_where_nobody_listens_nothing_is_written(store: Store, listener: dict[str, Any] | None) -> None:
    async with store.transaction() as conn:
        if listener is not None:
            await rows.add_subscription(conn, **listener)
            await _told(conn)
        key = (await rows.add_subscription(conn)).id
        await rows.add_delivery(conn, key, "held")
        await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="gone")
        assert await conn.fetchval("SELECT count(*) FROM dead_letters") == 1
        assert await _told(conn) == []


async def test_a_listener_listens_as_its_patterns_and_its_state_say(store: Store) -> None:
    async def heard(conn: asyncpg.Connection) -> int:
        other = (await rows.add_subscription(conn)).id
        told = await _told(conn)
        return len([data for _, data in told if data["subscription_id"] == str(other)])

    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn, event_types=["#"])).id
        assert await heard(conn) == 0
        await _changed(conn, key, event_types=["hookhare.subscription.created"])
        assert await heard(conn) == 1
        await _changed(conn, key, state="paused")
        assert await heard(conn) == 1
        await _changed(conn, key, state="disabled")
        assert await heard(conn) == 0
        await _changed(conn, key, state="enabled")
        assert await heard(conn) == 1
        await _changed(conn, key, event_types=["order.#"])
        assert await heard(conn) == 0
        await _changed(conn, key, event_types=["hookhare.#"])
        await subscriptions.delete(conn, key, no_secrets=b"")
        assert await heard(conn) == 0


async def test_disabling_tells_the_streak_that_it_ends(store: Store) -> None:
    async with store.transaction() as conn:
        await rows.add_subscription(conn, **LISTENER)
        key, other = [(await rows.add_subscription(conn)).id for _ in range(2)]
        for one in (key, other):
            await _fail(conn, one)
        await _told(conn)
        assert await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="it is over")
        await _changed(conn, other, state="disabled", state_reason="disabled by operator")
        told = await _told(conn)
        for (kind, data), reason in zip(told, ("it is over", "disabled by operator"), strict=True):
            assert kind == "hookhare.subscription.disabled"
            assert (data["failures"], data["failing_since"]) == (7, "2026-01-31T12:00:00.000000Z")
            assert (data["state"], data["reason"]) == ("disabled", reason)
        streaks = await conn.fetch("SELECT failing_since, failures, failing_told FROM subscriptions")
        assert {tuple(row) for row in streaks} == {(None, 0, False)}


async def test_disabling_twice_is_told_once(store: Store) -> None:
    async with store.transaction() as conn:
        await rows.add_subscription(conn, **LISTENER)
        key = (await rows.add_subscription(conn)).id
        await _told(conn)
        for _ in range(2):
            await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="it is over")
        assert len(await _told(conn)) == 1


async def test_a_streak_that_is_over_disables_nothing(store: Store) -> None:
    """Something was delivered between the count and its consequence; a new streak may have begun since."""
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        await _fail(conn, key)
        moment = await conn.fetchval("SELECT failing_since FROM subscriptions WHERE id = $1", key)
        for began in (None, moment + timedelta(microseconds=1)):
            await conn.execute("UPDATE subscriptions SET failing_since = $2 WHERE id = $1", key, began)
            assert not await subscriptions.disable(
                conn, key, url=rows.HOOK_URL, reason="too late", failing_since=moment
            )
        await conn.execute("UPDATE subscriptions SET failing_since = $2 WHERE id = $1", key, moment)
        assert await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="now", failing_since=moment)


@pytest.mark.parametrize(
    ("changes", "streak_stays", "breaker_stays"),
    [
        ([{"description": "new"}], True, True),
        ([{"url": "https://example.com/new"}], False, False),
        ([{"state": "paused"}], False, True),
        ([{"state": "paused"}, {"state": "enabled"}], False, False),
        ([{"state": "disabled"}, {"state": "enabled"}], False, False),
    ],
)
async def test_enabled_again_or_elsewhere_an_endpoint_starts_clean(
    store: Store, changes: list[dict[str, Any]], streak_stays: bool, breaker_stays: bool
) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        await _fail(conn, key)
        for change in changes:
            row = await _changed(conn, key, **change)
        assert (row.failing_since is not None, row.failures) == ((True, 7) if streak_stays else (False, 0))
        assert await conn.fetchval("SELECT failing_told FROM subscriptions") == streak_stays
        assert (row.breaker_until is not None) == breaker_stays


async def test_a_death_is_told_with_what_died_and_why_once_for_each_dead_letter(store: Store) -> None:
    async with store.transaction() as conn:
        await rows.add_subscription(conn, **LISTENER)
        key = (await rows.add_subscription(conn)).id
        keys = [await rows.add_delivery(conn, key, "held", attempts=3) for _ in range(3)]
        await _told(conn)
        await deliveries.end_unfinished(conn, key, status=Status.DEAD, reason="it is over")
        told = await _told(conn)
        assert {kind for kind, _ in told} == {"hookhare.delivery.dead"}
        assert sorted(data["delivery_id"] for _, data in told) == sorted(map(str, keys))
        (letter,) = await rows.letters(conn, keys[0])
        (data,) = [data for _, data in told if data["delivery_id"] == str(keys[0])]
        assert data == {
            "dead_letter_id": str(letter["id"]),
            "delivery_id": str(keys[0]),
            "cycle": 0,
            "subscription_id": str(key),
            "event_id": str(letter["event_id"]),
            "event_type": "order.created",
            "reason": "it is over",
            "attempts": 3,
        }
        # Settled again, as after a commit whose answer was lost.
        await deliveries.bury(conn, sorted(keys))
        assert await _told(conn) == []


async def test_what_is_canceled_or_alive_is_told_by_nobody(store: Store) -> None:
    async with store.transaction() as conn:
        await rows.add_subscription(conn, **LISTENER)
        key = (await rows.add_subscription(conn)).id
        held = await rows.add_delivery(conn, key, "held")
        await _told(conn)
        await deliveries.bury(conn, [held])
        await deliveries.end_unfinished(conn, key, status=Status.CANCELED, reason="deleted")
        assert await _told(conn) == []


@pytest.mark.parametrize("event_type", ["hookhare.delivery.dead", "hookhare.subscription.failing", "hookhare.test"])
async def test_the_death_of_an_operational_event_is_told_by_nobody(store: Store, event_type: str) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn, **LISTENER)).id
        await rows.add_delivery(conn, key, "held", event_type=event_type)
        ordinary = await rows.add_delivery(conn, key, "held", event_type="hookhares.own")
        await _told(conn)
        await deliveries.end_unfinished(conn, key, status=Status.DEAD, reason="it is over")
        assert [data["delivery_id"] for _, data in await _told(conn)] == [str(ordinary)]
        assert await conn.fetchval("SELECT count(*) FROM dead_letters") == 2


async def test_what_dies_past_its_retention_is_told_too(store: Store) -> None:
    async with store.connection() as conn:
        today: date = await partitions.today(conn)
        async with conn.transaction():
            await partitions.make(conn, first=today - timedelta(days=40), last=today)
            await rows.add_subscription(conn, **LISTENER)
            key = (await rows.add_subscription(conn)).id
            old = await rows.add_delivery(conn, key, "held", at=datetime.now(UTC) - timedelta(days=39))
            await _told(conn)
        await partitions.keep_partitions(conn, today=today, ahead_days=1, retention_days=30)
        async with conn.transaction():
            ((kind, data),) = await _told(conn)
    assert (kind, data["delivery_id"], data["reason"]) == (
        "hookhare.delivery.dead",
        str(old),
        partitions.PAST_RETENTION,
    )


async def test_ten_thousand_deaths_are_told_by_one_statement(store: Store) -> None:
    async with store.transaction() as conn:
        await rows.add_subscription(conn, **LISTENER)
        key = (await rows.add_subscription(conn)).id
        await conn.execute(
            """
            INSERT INTO deliveries (id, event_id, subscription_id, tenant, event_type, status, attempts, cycle, fence)
            SELECT id, id, $2, 'default', 'a.b', 'held', 1, 0, 0 FROM unnest($1::uuid[]) AS id
            """,
            [uuid7() for _ in range(10_000)],
            key,
        )
        await _told(conn)
        await deliveries.end_unfinished(conn, key, status=Status.DEAD, reason="it is over", limit=10_000)
        assert await conn.fetchval("SELECT count(*) FROM operational_events") == 10_000


async def test_two_dispatchers_take_different_events(store: Store) -> None:
    async with store.transaction() as conn:
        await rows.add_subscription(conn, **LISTENER)
        await rows.add_subscription(conn)
    async with store.transaction() as one, store.transaction() as other:
        taken = await operational.take(one, 1)
        rest = await operational.take(other, 9)
        assert len(taken) == len(rest) == 1
        assert taken[0]["id"] != rest[0]["id"]
