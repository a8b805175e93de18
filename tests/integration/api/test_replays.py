"""`/v1/replays`: create from a filter, get with counts, list, cancel."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from consumer_api import searching
from infra.store import replays
from infra.store.store import Store
from schemas.ids import DELIVERY, REPLAY, SUBSCRIPTION, parse_id, public_id
from tests.support import rows
from tests.support.api import ApiClient

REPLAYS = "/v1/replays"


async def _dead(store: Store, number: int, status: str = "dead") -> str:
    """Deliveries to a new subscription, whose id is returned."""
    at = datetime.now(UTC) - timedelta(seconds=1)
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        for _ in range(number):
            await rows.add_delivery(conn, subscription, status, at=at)
    return public_id(SUBSCRIPTION, subscription)


async def _work(store: Store, batch: int = 100) -> None:
    """What a dispatcher does, once."""
    async with store.transaction() as conn:
        await rows.step_replay(conn, batch=batch)


async def test_create_counts_what_matches_and_a_dispatcher_works_through_it(api: ApiClient, store: Store) -> None:
    subscription = await _dead(store, 3)
    await _dead(store, 2)
    answer = await api.call("POST", REPLAYS, {"subscription_id": subscription})
    assert answer.status == 202
    created = answer.body
    assert answer.headers["Location"] == f"{REPLAYS}/{created['id']}"
    assert (created["state"], created["matched"], created["replayed"], created["skipped"]) == ("running", 3, 0, 0)
    await _work(store, batch=2)
    assert (await api.get(f"{REPLAYS}/{created['id']}"))["replayed"] == 2
    await _work(store, batch=2)
    done = await api.get(f"{REPLAYS}/{created['id']}")
    assert (done["state"], done["matched"], done["replayed"], done["skipped"]) == ("completed", 3, 3, 0)
    assert done["ended_at"] is not None
    assert len((await api.get("/v1/deliveries", status="held", subscription_id=subscription))["data"]) == 3


async def test_the_filter_is_shown_as_it_was_frozen(api: ApiClient, store: Store) -> None:
    subscription = await _dead(store, 1)
    asked = {
        "subscription_id": subscription,
        "tenant": "default",
        "event_type": "order.created",
        "status": ["delivered", "canceled"],
        "created_after": "2026-01-01T00:00:00+02:00",
        "created_before": "2026-01-02T00:00:00Z",
    }
    shown = (await api.post(REPLAYS, asked))["filter"]
    assert shown == asked | {
        "created_after": "2025-12-31T22:00:00Z",
        "created_before": "2026-01-02T00:00:00Z",
    }


async def test_without_status_and_times_all_dead_deliveries_until_now_are_replayed(
    api: ApiClient, store: Store
) -> None:
    await _dead(store, 2)
    await _dead(store, 1, "delivered")
    began = datetime.now(UTC)
    created = await api.post(REPLAYS, {"tenant": "default"})
    assert (created["matched"], created["filter"]["status"], created["filter"]["created_after"]) == (2, ["dead"], None)
    assert created["filter"]["created_before"].endswith("Z")
    assert began <= datetime.fromisoformat(created["filter"]["created_before"]) <= datetime.now(UTC)


async def test_a_filter_that_narrows_nothing_is_refused_with_what_would(api: ApiClient, store: Store) -> None:
    await _dead(store, 1)
    bodies: list[dict[str, Any] | None] = [None, {}, {"status": ["dead"]}, {"tenant": None, "created_before": None}]
    for body in bodies:
        answer = await api.call("POST", REPLAYS, body)
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert answer.fields == {
            "body": "must have at least one of subscription_id, tenant, event_type, created_after, created_before"
        }
    assert (await api.get(REPLAYS))["data"] == []


async def test_a_bad_filter_is_refused_with_the_field_named(api: ApiClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"status": ["held"]}, "status.0"),
        ({"status": []}, "status"),
        ({"status": "dead"}, "status"),
        ({"subscription_id": "sub_x"}, "subscription_id"),
        ({"subscription_id": public_id(SUBSCRIPTION, uuid7())}, "subscription_id"),
        ({"subscription_id": 7}, "subscription_id"),
        ({"tenant": "a\x00"}, "tenant"),
        ({"event_type": "#"}, "event_type"),
        ({"created_after": 1700000000}, "created_after"),
        ({"created_after": "soon"}, "created_after"),
        ({"max_per_s": 0}, "max_per_s"),
        ({"max_per_s": 10_001}, "max_per_s"),
        ({"max_per_s": "fast"}, "max_per_s"),
        ({"colour": "red"}, "colour"),
    ]
    for body, field in cases:
        answer = await api.call("POST", REPLAYS, body)
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert list(answer.fields) == [field]
        assert (await api.get(REPLAYS))["data"] == []


async def test_a_replay_has_the_rate_that_was_asked_for_or_that_of_the_installation(
    api: ApiClient, store: Store
) -> None:
    assert (await api.post(REPLAYS, {"tenant": "default"}))["max_per_s"] == 100
    asked = await api.post(REPLAYS, {"tenant": "default", "max_per_s": 2.5})
    assert asked["max_per_s"] == 2.5
    assert (await api.get(f"{REPLAYS}/{asked['id']}"))["max_per_s"] == 2.5


async def test_a_replay_to_a_paused_subscription_is_refused(api: ApiClient, store: Store) -> None:
    subscription = await _dead(store, 1)
    await api.patch(f"/v1/subscriptions/{subscription}", {"state": "paused"})
    answer = await api.call("POST", REPLAYS, {"subscription_id": subscription})
    assert (answer.status, answer.code) == (409, "conflict")
    assert "paused" in answer.body["error"]["message"]


async def test_a_canceled_replay_stops_where_it_is(api: ApiClient, store: Store) -> None:
    subscription = await _dead(store, 3)
    created = await api.post(REPLAYS, {"subscription_id": subscription})
    await _work(store, batch=1)
    canceled = await api.post(f"{REPLAYS}/{created['id']}/cancel", status=200)
    assert (canceled["state"], canceled["replayed"]) == ("canceled", 1)
    await _work(store)
    assert len((await api.get("/v1/deliveries", status="dead"))["data"]) == 2
    again = await api.call("POST", f"{REPLAYS}/{created['id']}/cancel")
    assert (again.status, again.code) == (409, "conflict")


async def test_a_replay_that_takes_too_long_to_count_is_told_to_be_narrowed(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "SEARCH_TIMEOUT_MS", 50)
    async with store.transaction() as conn:
        await conn.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
        for more in ({}, {"dry_run": True}):
            answer = await api.call("POST", REPLAYS, {"tenant": "default", **more})
            assert (answer.status, answer.code) == (422, "query_too_broad")
    assert (await api.get(REPLAYS))["data"] == []


async def test_a_dry_run_counts_and_begins_nothing(api: ApiClient, store: Store) -> None:
    subscription = await _dead(store, 3)
    answer = await api.call("POST", REPLAYS, {"subscription_id": subscription, "dry_run": True})
    assert answer.status == 200
    assert (answer.body["dry_run"], answer.body["matched"]) == (True, 3)
    assert answer.body["filter"]["subscription_id"] == subscription
    assert answer.body["filter"]["created_before"].endswith("Z")
    assert (await api.get(REPLAYS))["data"] == []
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM audit_log") == 0
    assert list((await api.call("POST", REPLAYS, {"tenant": "a", "dry_run": "yes"})).fields) == ["dry_run"]


async def test_so_many_replays_of_a_tenant_run_and_no_more(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "MAX_RUNNING", 1)
    subscription = await _dead(store, 1)
    wanted = {"tenant": "default"}
    running = await api.post(REPLAYS, wanted)
    recovery = {"since": running["created_at"]}
    for path, body in ((REPLAYS, wanted), (f"/v1/subscriptions/{subscription}/recover", recovery)):
        refused = await api.call("POST", path, body)
        assert (refused.status, refused.code) == (409, "conflict")
    await api.post(REPLAYS, {"tenant": "another"})
    await api.post(f"{REPLAYS}/{running['id']}/cancel", status=200)
    await api.post(REPLAYS, wanted)


async def test_a_replay_shows_what_became_of_what_it_began_again(api: ApiClient, store: Store) -> None:
    subscription = await _dead(store, 6)
    created = await api.post(REPLAYS, {"subscription_id": subscription})
    path = f"{REPLAYS}/{created['id']}"
    await _work(store, batch=5)
    begun = (await api.get("/v1/deliveries", replay_id=created["id"]))["data"]
    assert len(begun) == 5
    assert {one["replay_id"] for one in begun} == {created["id"]}
    await _work(store)
    keys = [parse_id(DELIVERY, one["id"]) for one in begun]
    async with store.transaction() as conn:
        for key, status in zip(keys, ("delivered", "delivered", "dead", "canceled", "retrying"), strict=True):
            await conn.execute("UPDATE deliveries SET status = $2 WHERE id = $1", key, status)
    progress = (await api.get(path))["progress"]
    expected = {"delivered": 2, "failed": 1, "canceled": 1, "waiting": 2}
    assert progress == {"total": 6, "sent": 6, "skipped": 0} | expected
    # By hand, or by another replay: from then on it is theirs.
    await api.post(f"/v1/deliveries/{begun[0]['id']}/replay")
    other = await api.post(REPLAYS, {"subscription_id": subscription, "status": ["dead"]})
    await _work(store)
    assert (await api.get(f"/v1/deliveries/{begun[0]['id']}"))["replay_id"] is None
    assert (await api.get(f"/v1/deliveries/{begun[2]['id']}"))["replay_id"] == other["id"]
    progress = (await api.get(path))["progress"]
    assert (progress["sent"], progress["delivered"], progress["failed"]) == (6, 1, 0)
    assert list((await api.call("GET", "/v1/deliveries", replay_id="x")).fields) == ["replay_id"]


async def test_replays_are_listed_newest_first_and_filtered(api: ApiClient, store: Store) -> None:
    one = (await api.post(REPLAYS, {"tenant": "acme"}))["id"]
    two = (await api.post(REPLAYS, {"event_type": "order.created"}))["id"]
    await api.post(f"{REPLAYS}/{two}/cancel", status=200)
    assert [row["id"] for row in (await api.get(REPLAYS))["data"]] == [two, one]
    assert [row["id"] for row in (await api.get(REPLAYS, tenant="acme"))["data"]] == [one]
    assert [row["id"] for row in (await api.get(REPLAYS, state="canceled"))["data"]] == [two]
    page = await api.get(REPLAYS, limit=1)
    assert [row["id"] for row in (await api.get(REPLAYS, limit=1, cursor=page["next_cursor"]))["data"]] == [one]


async def test_what_is_not_there_is_404_and_what_is_no_id_names_the_field(api: ApiClient) -> None:
    cases: list[str] = ["", "/cancel"]
    for tail in cases:
        method = "POST" if tail else "GET"
        assert (await api.call(method, f"{REPLAYS}/{public_id(REPLAY, uuid7())}{tail}")).code == "not_found"
        answer = await api.call(method, f"{REPLAYS}/{public_id(SUBSCRIPTION, uuid7())}{tail}")
        assert (answer.status, list(answer.fields)) == (400, ["replay_id"])
