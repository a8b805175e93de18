"""Creating, changing and ending subscriptions: the version, the locks, and what becomes of their deliveries."""

import asyncio
import itertools
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from infra.store import locks, subscriptions
from infra.store.deliveries import DeliveryRow
from infra.store.outcomes import Missing, Refused
from infra.store.store import Store
from infra.store.subscriptions import SubscriptionRow
from schemas.ids import key_ms
from tests.support import rows
from tests.support.rows import Claim

UNFINISHED = ("pending", "held", "retrying")
ENDED = ("delivered", "dead", "canceled")


async def _version(conn: asyncpg.Connection) -> int:
    return int(await conn.fetchval("SELECT version FROM subscription_version"))


async def _changed(conn: asyncpg.Connection, key: UUID, **changes: object) -> SubscriptionRow:
    row = await subscriptions.lock_for_change(conn, key)
    assert isinstance(row, SubscriptionRow)
    return await subscriptions.save(conn, replace(row, **changes))  # type: ignore[arg-type]


async def test_every_change_of_a_configuration_is_stored_with_a_higher_version(store: Store) -> None:
    async with store.transaction() as conn:
        before = await _version(conn)
        row = await rows.add_subscription(conn)
        seen = [before, row.version]
        changes: list[dict[str, object]] = [
            {"url": "https://example.com/new"},
            {"secrets": b"new"},
            {"retry_policy": {"delays_s": []}},
            {"headers": b"new"},
            {"event_types": ["#"]},
            {"timeout_s": 3},
            {"ordered": True},
            {"state": "paused"},
            {"state": "enabled"},
            {"state": "disabled"},
        ]
        for change in changes:
            row = await _changed(conn, row.id, **change)
            assert all(getattr(row, name) == value for name, value in change.items())
            assert row.version == await _version(conn)
            seen.append(row.version)
        await subscriptions.delete(conn, row.id, no_secrets=b"")
        seen.append(await conn.fetchval("SELECT version FROM subscriptions WHERE id = $1", row.id))
        other = await rows.add_subscription(conn)
        await subscriptions.disable(conn, other.id, url=rows.HOOK_URL, reason="it answered 410")
        seen.append(await conn.fetchval("SELECT version FROM subscriptions WHERE id = $1", other.id))
    assert all(earlier < later for earlier, later in itertools.pairwise(seen))


@pytest.mark.parametrize("what", ["create", "save", "disable", "delete"])
async def test_a_change_waits_for_admissions_that_share_the_version(store: Store, what: str) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id

    async def change() -> None:
        async with store.transaction() as conn:
            match what:
                case "create":
                    await rows.add_subscription(conn)
                case "save":
                    await _changed(conn, key, url="https://example.com/new")
                case "disable":
                    await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="it answered 410")
                case "delete":
                    await subscriptions.delete(conn, key, no_secrets=b"")

    async with store.transaction() as admission:
        await locks.share_subscriptions(admission)
        version = await _version(admission)
        changing = asyncio.create_task(change())
        done, _ = await asyncio.wait([changing], timeout=0.3)
        assert not done
        assert await _version(admission) == version
    await changing
    async with store.connection() as conn:
        assert await _version(conn) == version + 1


async def test_disabling_makes_unfinished_deliveries_dead_with_one_dead_letter_each(store: Store) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        other = (await rows.add_subscription(conn)).id
        keys = [
            await rows.add_delivery(conn, key, status, cycle=2, claim=Claim(uuid7()) if status == "pending" else None)
            for status in UNFINISHED
        ]
        ended = [await rows.add_delivery(conn, key, status) for status in ENDED]
        before = [await rows.delivery(conn, one) for one in ended]
        bystander = await rows.add_delivery(conn, other, "held")
    for _ in range(2):  # the second time finds nothing to do
        async with store.transaction() as conn:
            await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="it answered 410")
    async with store.connection() as conn:
        for one in keys:
            row = await rows.delivery(conn, one)
            assert (row["status"], row["reason"], row["next_attempt_at"]) == ("dead", "it answered 410", None)
            (letter,) = await rows.letters(conn, one)
            assert (letter["kind"], letter["cycle"], letter["reason"]) == ("delivery", 2, "it answered 410")
            assert (letter["subscription_id"], letter["event_id"]) == (key, row["event_id"])
            assert (letter["state"], letter["published_at"]) == ("open", None)
        assert [await rows.delivery(conn, one) for one in ended] == before
        assert (await rows.delivery(conn, bystander))["status"] == "held"
        after = await subscriptions.get(conn, key)
        assert isinstance(after, SubscriptionRow)
        assert (after.state, after.state_reason) == ("disabled", "it answered 410")


async def test_what_an_endpoint_said_at_another_url_disables_nothing(store: Store) -> None:
    """A 410 that comes late, after the URL was changed, says nothing about the new one."""
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        one = await rows.add_delivery(conn, key, "held")
        version = await _version(conn)
        assert not await subscriptions.disable(conn, key, url="https://example.com/old", reason="it answered 410")
        assert (await rows.delivery(conn, one))["status"] == "held"
        assert await _version(conn) == version
        assert await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="it answered 410")


@pytest.mark.parametrize("way", ["disable", "save", "delete"])
async def test_ending_a_subscription_leaves_live_claims_alone(store: Store, way: str) -> None:
    claim = Claim(uuid7(), fence=3)
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        one = await rows.add_delivery(conn, key, "pending", claim=claim)
        before = await rows.delivery(conn, one)
        if way == "disable":
            await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="gone")
        elif way == "save":
            await _changed(conn, key, state="disabled")
        else:
            await subscriptions.delete(conn, key, no_secrets=b"")
        row = await rows.delivery(conn, one)
    assert row["status"] in {"dead", "canceled"}
    assert (row["claimed_by"], row["claimed_at"], row["fence"]) == (claim.by, before["claimed_at"], 3)


async def test_deleting_cancels_unfinished_deliveries_and_blanks_what_is_secret(store: Store) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn, headers=b"headers", secrets=b"secrets")).id
        keys = [await rows.add_delivery(conn, key, status) for status in ("held", "retrying")]
        delivered = await rows.add_delivery(conn, key, "delivered")
        assert await subscriptions.delete(conn, key, no_secrets=b"nothing")
        for one in keys:
            row = await rows.delivery(conn, one)
            assert (row["status"], row["reason"]) == ("canceled", "the subscription was deleted")
            assert await rows.letters(conn, one) == []
        assert (await rows.delivery(conn, delivered))["status"] == "delivered"
        stored = await conn.fetchrow("SELECT state, headers, secrets, deleted_at FROM subscriptions WHERE id = $1", key)
        assert stored is not None
        assert (stored["state"], stored["headers"], stored["secrets"]) == ("enabled", None, b"nothing")
        assert stored["deleted_at"] is not None


async def test_what_is_deleted_is_gone_for_everybody(store: Store) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        assert await subscriptions.delete(conn, key, no_secrets=b"")
        assert not await subscriptions.delete(conn, key, no_secrets=b"")
        assert await subscriptions.get(conn, key) == Missing()
        assert await subscriptions.lock_for_change(conn, key) == Missing()
        assert (await subscriptions.list_page(conn, tenant=None, state=None, after=None, limit=9)).rows == []
        now = datetime.now(UTC)
        sent = await subscriptions.send_test(conn, key, now=now, external_id="x", traceparent=None)
        assert sent == Missing()
        await subscriptions.disable(conn, key, url=rows.HOOK_URL, reason="too late")
        assert await conn.fetchval("SELECT state FROM subscriptions WHERE id = $1", key) == "enabled"


async def test_pausing_ends_nothing_and_resuming_changes_only_the_state(store: Store) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        held = await rows.add_delivery(conn, key, "held")
        before = await rows.delivery(conn, held)
        await _changed(conn, key, state="paused")
        await _changed(conn, key, state="enabled")
        assert await rows.delivery(conn, held) == before


async def test_enabling_a_disabled_subscription_revives_nothing(store: Store) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        one = await rows.add_delivery(conn, key, "held")
        await _changed(conn, key, state="disabled", state_reason="disabled by operator")
        await _changed(conn, key, state="enabled", state_reason=None)
        row = await rows.delivery(conn, one)
        assert (row["status"], row["reason"]) == ("dead", "disabled by operator")


async def test_a_test_event_is_stored_with_one_held_delivery(store: Store) -> None:
    now = datetime.now(UTC)
    async with store.transaction() as conn:
        subscription = await rows.add_subscription(conn, tenant="acme", event_types=["order.created"])
        sent = await subscriptions.send_test(conn, subscription.id, now=now, external_id="x", traceparent="00-ab")
        assert isinstance(sent, DeliveryRow)
        assert (sent.status, sent.event_type, sent.tenant, sent.attempts) == ("held", "hookhare.test", "acme", 0)
        assert key_ms(sent.id) == key_ms(sent.event_id) == int(now.timestamp() * 1000)
        event = await conn.fetchrow("SELECT * FROM events WHERE id = $1", sent.event_id)
        assert event is not None
        assert (event["type"], event["source"], event["tenant"]) == ("hookhare.test", "hookhare", "acme")
        assert event["traceparent"] == "00-ab"
        assert await rows.mode(conn, subscription.id) == "held"
        assert await conn.fetchval("SELECT count(*) FROM event_keys") == 0


async def test_a_subscription_that_is_paused_or_disabled_is_not_tested(store: Store) -> None:
    async with store.transaction() as conn:
        key = (await rows.add_subscription(conn)).id
        for state in ("paused", "disabled"):
            await _changed(conn, key, state=state)
            sent = await subscriptions.send_test(conn, key, now=datetime.now(UTC), external_id=state, traceparent=None)
            assert isinstance(sent, Refused)
            assert state in sent.reason
        assert await conn.fetchval("SELECT count(*) FROM deliveries") == 0


async def test_lists_filter_by_tenant_and_state(store: Store) -> None:
    async with store.transaction() as conn:
        ours = await rows.add_subscription(conn, tenant="acme")
        await rows.add_subscription(conn, tenant="other")
        paused = await rows.add_subscription(conn, tenant="acme")
        await _changed(conn, paused.id, state="paused")
        page = await subscriptions.list_page(conn, tenant="acme", state=None, after=None, limit=9)
        assert [row.id for row in page.rows] == [paused.id, ours.id]
        page = await subscriptions.list_page(conn, tenant="acme", state="enabled", after=None, limit=9)
        assert [row.id for row in page.rows] == [ours.id]
