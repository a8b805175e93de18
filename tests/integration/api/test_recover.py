"""`/v1/subscriptions/{id}/recover`: what died since a time is sent again, as a replay."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from consumer_api import searching
from infra.store.store import Store
from schemas.ids import DELIVERY, SUBSCRIPTION, first_key_at, parse_id, public_id
from tests.support import rows
from tests.support.api import ApiClient

HOUR = timedelta(hours=1)


def _path(key: UUID) -> str:
    return f"/v1/subscriptions/{public_id(SUBSCRIPTION, key)}/recover"


async def _subscription(store: Store) -> UUID:
    async with store.transaction() as conn:
        return (await rows.add_subscription(conn)).id


async def _delivery(
    store: Store, key: UUID, status: str = "dead", *, died: timedelta = HOUR, came: timedelta = 2 * HOUR
) -> UUID:
    """A delivery of an event that came so long ago; it died so long ago."""
    now = datetime.now(UTC)
    async with store.transaction() as conn:
        delivery = await rows.add_delivery(conn, key, status, at=now - came)
        letter = UUID(int=first_key_at(now - died).int | uuid7().int & (1 << 60) - 1)
        await conn.execute("UPDATE dead_letters SET id = $2 WHERE delivery_id = $1", delivery, letter)
    return delivery


async def _work(store: Store) -> None:
    """What a dispatcher does."""
    busy = True
    while busy:
        async with store.transaction() as conn:
            busy = await rows.step_replay(conn, batch=2)


async def _held(api: ApiClient) -> set[UUID]:
    return {parse_id(DELIVERY, one["id"]) for one in (await api.get("/v1/deliveries", status="held"))["data"]}


def _ago(time: timedelta) -> str:
    return (datetime.now(UTC) - time).isoformat()


async def test_what_died_since_then_is_sent_again_and_nothing_else(api: ApiClient, store: Store) -> None:
    key, other = await _subscription(store), await _subscription(store)
    # Also of an event that had come before: it was waiting for its retries when the endpoint went down.
    wanted = {await _delivery(store, key) for _ in range(4)} | {await _delivery(store, key, came=9 * HOUR)}
    await _delivery(store, key, died=6 * HOUR, came=7 * HOUR)
    await _delivery(store, other)
    for status in ("delivered", "canceled", "retrying"):
        await _delivery(store, key, status)
    discarded = await _delivery(store, key)
    async with store.connection() as conn:
        await conn.execute("UPDATE dead_letters SET state = 'discarded' WHERE delivery_id = $1", discarded)

    answer = await api.call("POST", _path(key), {"since": _ago(5 * HOUR)})
    assert answer.status == 202
    created = answer.body
    assert answer.headers["Location"] == f"/v1/replays/{created['id']}"
    assert (created["state"], created["matched"]) == ("running", 5)
    assert created["filter"]["subscription_id"] == public_id(SUBSCRIPTION, key)
    assert created["filter"]["status"] == ["dead"]
    assert created["filter"]["died_after"].endswith("Z")
    assert created["filter"]["died_before"].endswith("Z")

    late = await _delivery(store, key, came=3 * HOUR, died=timedelta(0))
    await _work(store)
    assert await _held(api) == wanted
    done = await api.get(f"/v1/replays/{created['id']}")
    assert (done["state"], done["replayed"], done["skipped"]) == ("completed", 5, 0)
    assert late not in wanted


async def test_until_bounds_it(api: ApiClient, store: Store) -> None:
    key = await _subscription(store)
    wanted = await _delivery(store, key, died=3 * HOUR, came=4 * HOUR)
    await _delivery(store, key, died=HOUR)
    created = await api.post(_path(key), {"since": _ago(5 * HOUR), "until": _ago(2 * HOUR)})
    assert created["matched"] == 1
    await _work(store)
    assert await _held(api) == {wanted}


async def test_what_died_again_is_recovered_by_its_last_death(api: ApiClient, store: Store) -> None:
    key = await _subscription(store)
    one = await _delivery(store, key, died=9 * HOUR, came=10 * HOUR)
    async with store.transaction() as conn:
        await conn.execute("UPDATE dead_letters SET state = 'replayed'")
        await conn.execute("UPDATE deliveries SET cycle = 1")
        await conn.execute(
            "INSERT INTO dead_letters (id, kind, reason, delivery_id, cycle, subscription_id) "
            "VALUES ($1, 'delivery', 'again', $2, 1, $3)",
            first_key_at(datetime.now(UTC) - HOUR),
            one,
            key,
        )
    assert (await api.post(_path(key), {"since": _ago(10 * HOUR), "until": _ago(8 * HOUR)}))["matched"] == 0
    assert (await api.post(_path(key), {"since": _ago(2 * HOUR)}))["matched"] == 1


async def test_a_subscription_that_is_not_enabled_is_not_sent_to(api: ApiClient, store: Store) -> None:
    for state in ("paused", "disabled"):
        key = await _subscription(store)
        await _delivery(store, key)
        await api.patch(f"/v1/subscriptions/{public_id(SUBSCRIPTION, key)}", {"state": state})
        answer = await api.call("POST", _path(key), {"since": _ago(5 * HOUR)})
        assert (answer.status, answer.code) == (409, "conflict")
        assert state in answer.body["error"]["message"]
    assert (await api.get("/v1/replays"))["data"] == []


async def test_a_time_of_which_there_is_nothing_is_refused_with_the_field_named(api: ApiClient, store: Store) -> None:
    key = await _subscription(store)
    bodies: list[tuple[dict[str, Any], str]] = [
        ({}, "since"),
        ({"since": None}, "since"),
        ({"since": 1_700_000_000}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"since": _ago(-HOUR)}, "since"),
        ({"since": _ago(timedelta(days=31))}, "since"),
        ({"since": _ago(HOUR), "until": _ago(2 * HOUR)}, "until"),
        ({"since": _ago(HOUR), "status": ["canceled"]}, "status"),
    ]
    for body, field in bodies:
        answer = await api.call("POST", _path(key), body)
        assert (answer.status, answer.code, list(answer.fields)) == (400, "validation_failed", [field]), body
    assert (await api.get("/v1/replays"))["data"] == []


async def test_what_is_not_there_is_404(api: ApiClient) -> None:
    answer = await api.call("POST", _path(uuid7()), {"since": _ago(HOUR)})
    assert (answer.status, answer.code) == (404, "not_found")


async def test_a_subscription_shows_its_streak(api: ApiClient, store: Store) -> None:
    key = await _subscription(store)
    path = f"/v1/subscriptions/{public_id(SUBSCRIPTION, key)}"
    assert (await api.get(path))["streak"] == {"failures": 0, "failing_since": None}
    async with store.connection() as conn:
        await conn.execute("UPDATE subscriptions SET failures = 7, failing_since = '2026-01-31T12:00:00Z'")
    assert (await api.get(path))["streak"] == {"failures": 7, "failing_since": "2026-01-31T12:00:00Z"}


async def test_an_event_of_a_type_that_is_hookhares_own_is_refused(api: ApiClient) -> None:
    answer = await api.call("POST", "/v1/events", {"type": "hookhare.delivery.dead", "data": {}})
    assert (answer.status, answer.code) == (400, "validation_failed")
    assert answer.fields == {"type": "must not begin with the word hookhare: it is for its own events"}


async def test_what_takes_too_long_to_count_is_told_to_be_narrowed(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await _subscription(store)
    monkeypatch.setattr(searching, "SEARCH_TIMEOUT_MS", 50)
    async with store.transaction() as conn:
        await conn.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
        answer = await api.call("POST", _path(key), {"since": _ago(HOUR)})
    assert (answer.status, answer.code) == (422, "query_too_broad")
    assert (await api.get("/v1/replays"))["data"] == []
