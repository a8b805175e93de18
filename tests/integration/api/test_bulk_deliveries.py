"""`/v1/deliveries/retry` and `/cancel` by a filter: what they take, a part at a time, and what they leave alone."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from consumer_api import bulk_deliveries, searching
from infra.store.store import Store
from schemas.ids import SUBSCRIPTION, public_id
from tests.support import rows
from tests.support.api import ApiClient

RETRY = "/v1/deliveries/retry"
CANCEL = "/v1/deliveries/cancel"


async def _add(store: Store, *statuses: str, subscription: UUID | None = None, **given: Any) -> tuple[str, list[UUID]]:
    """Deliveries to a subscription, which is new unless it is given; its id, and theirs."""
    async with store.transaction() as conn:
        tenant = given.get("tenant", "default")
        subscription = subscription or (await rows.add_subscription(conn, tenant=tenant)).id
        keys = [await rows.add_delivery(conn, subscription, status, **given) for status in statuses]
    return public_id(SUBSCRIPTION, subscription), keys


async def _statuses(store: Store, keys: list[UUID]) -> list[str]:
    async with store.connection() as conn:
        return [(await rows.delivery(conn, key))["status"] for key in keys]


async def _audited(store: Store) -> list[tuple[str, str | None, int]]:
    async with store.connection() as conn:
        found = await conn.fetch(
            "SELECT action, tenant, after FROM audit_log WHERE action LIKE 'deliveries.%' ORDER BY id"
        )
    return [(one["action"], one["tenant"], one["after"]["changed"]) for one in found]


async def test_a_retry_takes_what_waits_for_its_next_attempt_and_nothing_else(api: ApiClient, store: Store) -> None:
    subscription, keys = await _add(store, "retrying", "held", "dead", "delivered", "retrying")
    _, claimed = await _add(store, "retrying", claim=rows.Claim(uuid7()), tenant="acme")
    _, others = await _add(store, "retrying")
    counted = await api.post(RETRY, {"subscription_id": subscription, "dry_run": True}, status=200)
    assert counted == {"dry_run": True, "matched": 2, "changed": 0, "has_more": False, "next_cursor": None}
    assert await _audited(store) == []
    done = await api.post(RETRY, {"subscription_id": subscription}, status=200)
    assert done == {"dry_run": False, "matched": 2, "changed": 2, "has_more": False, "next_cursor": None}
    assert await _statuses(store, keys) == ["held", "held", "dead", "delivered", "held"]
    assert await _statuses(store, others) == ["retrying"]
    async with store.connection() as conn:
        row = await rows.delivery(conn, keys[0])
        assert (row["next_attempt_at"], row["hint_due_at"], row["cycle"]) == (None, None, 0)
        assert await rows.mode(conn, row["subscription_id"]) == "held"
    assert await _audited(store) == [("deliveries.retried", "default", 2)]
    # Being attempted just now: it is left to who does that.
    assert (await api.post(RETRY, {"tenant": "acme"}, status=200))["changed"] == 0
    assert await _statuses(store, claimed) == ["retrying"]
    again = await api.post(RETRY, {"subscription_id": subscription}, status=200)
    assert (again["matched"], len(await _audited(store))) == (0, 1)


async def test_a_cancel_takes_what_has_not_ended_or_the_statuses_that_are_named(api: ApiClient, store: Store) -> None:
    claim = rows.Claim(uuid7())
    subscription, keys = await _add(store, "retrying", "held", "dead", "delivered")
    _, (pending,) = await _add(store, "pending", claim=claim, event_type="a.b")
    done = await api.post(CANCEL, {"subscription_id": subscription, "status": ["held"]}, status=200)
    assert (done["matched"], done["changed"]) == (1, 1)
    assert await _statuses(store, keys) == ["retrying", "canceled", "dead", "delivered"]
    await api.post(CANCEL, {"subscription_id": subscription}, status=200)
    assert await _statuses(store, keys) == ["canceled", "canceled", "dead", "delivered"]
    await api.post(CANCEL, {"event_type": "a.b"}, status=200)
    async with store.connection() as conn:
        row = await rows.delivery(conn, pending)
    # The claim stays until its owner settles.
    assert (row["status"], row["reason"], row["claimed_by"]) == ("canceled", "canceled by operator", claim.by)
    assert [one[0] for one in await _audited(store)] == ["deliveries.canceled"] * 3


async def test_many_are_done_a_part_at_a_time_without_those_that_came_meanwhile(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk_deliveries, "CHANGED_ROWS", 2)
    at = datetime.now(UTC) - timedelta(minutes=1)
    subscription, keys = await _add(store, *["held"] * 5, at=at)
    path = CANCEL
    parts = []
    while True:
        done = await api.post(path, {"subscription_id": subscription}, status=200)
        parts.append(done["changed"])
        if not done["has_more"]:
            break
        if len(parts) == 1:
            late = (await _add(store, "held", subscription=(await _subscription(store, keys[0]))))[1]
        path = f"{CANCEL}?cursor={done['next_cursor']}"
    assert parts == [2, 2, 1]
    assert set(await _statuses(store, keys)) == {"canceled"}
    assert await _statuses(store, late) == ["held"]
    assert [one[2] for one in await _audited(store)] == parts


async def _subscription(store: Store, key: UUID) -> UUID:
    async with store.connection() as conn:
        found: UUID = (await rows.delivery(conn, key))["subscription_id"]
    return found


async def test_a_range_of_time_and_a_tenant_narrow_it(api: ApiClient, store: Store) -> None:
    at = datetime.now(UTC) - timedelta(minutes=5)
    _, old = await _add(store, "held", tenant="acme", at=at)
    _, new = await _add(store, "held", tenant="acme")
    _, other = await _add(store, "held", tenant="other", at=at)
    before = (at + timedelta(seconds=1)).isoformat()
    assert (await api.post(CANCEL, {"tenant": "acme", "created_before": before}, status=200))["changed"] == 1
    assert await _statuses(store, [*old, *new, *other]) == ["canceled", "held", "held"]
    assert [one[:2] for one in await _audited(store)] == [("deliveries.canceled", "acme")]


async def test_a_retry_passes_over_what_a_disabled_subscription_has(api: ApiClient, store: Store) -> None:
    subscription, keys = await _add(store, "retrying")
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET state = 'disabled'")
    done = await api.post(RETRY, {"subscription_id": subscription}, status=200)
    assert (done["matched"], done["changed"]) == (1, 0)
    assert await _statuses(store, keys) == ["retrying"]


@pytest.mark.parametrize("path", [RETRY, CANCEL])
async def test_what_narrows_nothing_or_is_wrong_is_refused(api: ApiClient, path: str) -> None:
    missing = "must have at least one of subscription_id, tenant, event_type, created_after, created_before"
    for body in ({}, {"dry_run": True}):
        answer = await api.call("POST", path, body)
        assert (answer.status, answer.code, answer.fields) == (400, "validation_failed", {"body": missing})
    assert (await api.call("POST", path)).code == "invalid_json"
    assert list((await api.call("POST", path, {"tenant": "acme"}, cursor="x")).fields) == ["cursor"]
    for field, value in (("status", ["dead"]), ("subscription_id", "sub_x"), ("dry_run", "yes")):
        answer = await api.call("POST", path, {"tenant": "acme", field: value})
        assert [name.partition(".")[0] for name in answer.fields] == [field]


@pytest.mark.parametrize("path", [RETRY, CANCEL])
async def test_what_takes_too_long_to_find_is_told_to_be_narrowed(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(searching, "SEARCH_TIMEOUT_MS", 50)
    async with store.transaction() as conn:
        await conn.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
        for body in ({"event_type": "a.b"}, {"event_type": "a.b", "dry_run": True}):
            answer = await api.call("POST", path, body)
            assert (answer.status, answer.code) == (422, "query_too_broad")


async def test_a_tenants_key_reaches_its_own_alone(api: ApiClient, store: Store) -> None:
    subscription, theirs = await _add(store, "held", tenant="other")
    _, own = await _add(store, "held", tenant="acme")
    acme = await api.of_tenant("acme")
    assert (await acme.call("POST", CANCEL, {"subscription_id": subscription})).code == "not_found"
    assert (await acme.call("POST", CANCEL, {"tenant": "other"})).code == "forbidden"
    assert (await acme.post(CANCEL, {"event_type": "order.created"}, status=200))["changed"] == 1
    assert await _statuses(store, [*theirs, *own]) == ["held", "canceled"]
    reader = await api.of_tenant("acme", "deliveries:read")
    assert (await reader.call("POST", RETRY, {"tenant": "acme"})).code == "forbidden"
