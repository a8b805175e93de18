"""`/v1/attempts`, and deliveries by what their attempts were answered."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from consumer_api import searching
from infra.store import api_keys
from infra.store.store import Store
from schemas.ids import ATTEMPT, DELIVERY, SUBSCRIPTION, public_id
from schemas.scopes import Scope
from tests.support import rows
from tests.support.api import ApiClient
from tests.support.waiting import eventually

ATTEMPTS = "/v1/attempts"
DELIVERIES = "/v1/deliveries"


async def _add(store: Store, *attempts: dict[str, Any], tenant: str = "default") -> tuple[UUID, list[UUID], UUID]:
    """A delivery, attempts at it, and its subscription."""
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn, tenant=tenant)).id
        key = await rows.add_delivery(conn, subscription, "retrying", tenant=tenant)
        made = [await rows.add_attempt(conn, key, number=n, **given) for n, given in enumerate(attempts, 1)]
    return key, made, subscription


def _ids(page: dict[str, Any]) -> list[str]:
    return [one["id"] for one in page["data"]]


async def test_attempts_are_listed_newest_first_and_filtered(api: ApiClient, store: Store) -> None:
    no_answer = {"status_code": None, "failure": "timeout", "outcome": "dead"}
    one, (first, second), subscription = await _add(store, {}, no_answer, tenant="acme")
    other, (third,), _ = await _add(store, {"status_code": 204, "outcome": "delivered"})
    ids = [public_id(ATTEMPT, key) for key in (first, second, third)]
    assert _ids(await api.get(ATTEMPTS)) == ids[::-1]
    page = await api.get(ATTEMPTS, limit=2)
    assert _ids(await api.get(ATTEMPTS, limit=2, cursor=page["next_cursor"])) == ids[:1]
    at = datetime.fromtimestamp((third.int >> 80) / 1000, UTC).isoformat()
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"delivery_id": public_id(DELIVERY, one)}, ids[1::-1]),
        ({"subscription_id": public_id(SUBSCRIPTION, subscription)}, ids[1::-1]),
        ({"tenant": "acme"}, ids[1::-1]),
        ({"outcome": "delivered"}, ids[2:]),
        ({"status_class": "2xx"}, ids[2:]),
        ({"status_class": "5xx"}, ids[:1]),
        ({"status_class": "none"}, ids[1:2]),
        ({"tenant": "acme", "status_class": "2xx"}, []),
        ({"created_after": at, "delivery_id": public_id(DELIVERY, other)}, ids[2:]),
    ]
    for query, expected in cases:
        assert _ids(await api.get(ATTEMPTS, **query)) == expected, query
    shown = await api.get(f"{ATTEMPTS}/{ids[0]}")
    assert (shown["id"], shown["delivery_id"], shown["status_code"]) == (ids[0], public_id(DELIVERY, one), 500)


async def test_attempts_are_found_where_what_accepted_the_event_has_a_clock_that_is_ahead(
    api: ApiClient, store: Store
) -> None:
    """By five minutes, as far as it is believed. The ids of its deliveries are above those of their attempts then."""
    now = datetime.now(UTC)
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn, tenant="acme")).id
        delivery = await rows.add_delivery(conn, subscription, "retrying", tenant="acme", at=now + timedelta(minutes=5))
        attempt = public_id(ATTEMPT, await rows.add_attempt(conn, delivery, response_body=b"needle"))
    delivery_id = public_id(DELIVERY, delivery)
    assert [one["id"] for one in (await api.get(f"{DELIVERIES}/{delivery_id}"))["attempts"]] == [attempt]
    soon = (now + timedelta(minutes=1)).isoformat()
    for query in ({"delivery_id": delivery_id}, {"tenant": "acme", "created_before": soon}):
        assert _ids(await api.get(ATTEMPTS, **query)) == [attempt], query
    within = {"created_after": now.isoformat(), "created_before": (now + timedelta(minutes=9)).isoformat()}
    for query in ({"status_class": "5xx"}, {"text": "needle", **within}):
        assert _ids(await api.get(DELIVERIES, **query)) == [delivery_id], query


async def test_a_stranger_sees_no_attempt(api: ApiClient, store: Store) -> None:
    _, (attempt,), _ = await _add(store, {"response_body": b"needle"}, tenant="acme")
    async with store.transaction() as conn:
        mine, _ = await api_keys.create(conn, "acme", tenant="acme", scopes=frozenset({Scope.DELIVERIES_READ}))
        strange, _ = await api_keys.create(conn, "other", tenant="other", scopes=frozenset({Scope.DELIVERIES_READ}))
    now = datetime.now(UTC)
    within: dict[str, Any] = {
        "created_after": (now - timedelta(hours=1)).isoformat(),
        "created_before": now.isoformat(),
    }
    for key, seen in ((mine, 1), (strange, 0)):
        assert len((await api.call("GET", ATTEMPTS, key=key)).body["data"]) == seen
        assert len((await api.call("GET", DELIVERIES, key=key, text="needle", **within)).body["data"]) == seen
        one = await api.call("GET", f"{ATTEMPTS}/{public_id(ATTEMPT, attempt)}", key=key)
        assert one.status == (200 if seen else 404)
    assert (await api.call("GET", ATTEMPTS, key=strange, tenant="acme")).status == 403


async def test_an_attempt_that_is_not_there_is_404_and_what_is_no_id_names_the_field(api: ApiClient) -> None:
    assert (await api.call("GET", f"{ATTEMPTS}/{public_id(ATTEMPT, uuid7())}")).code == "not_found"
    answer = await api.call("GET", f"{ATTEMPTS}/{public_id(DELIVERY, uuid7())}")
    assert (answer.status, list(answer.fields)) == (400, ["attempt_id"])
    bad = await api.call("GET", ATTEMPTS, status_class="6xx", outcome="lost", delivery_id="x")
    assert bad.fields.keys() == {"status_class", "outcome", "delivery_id"}


async def test_deliveries_are_filtered_by_the_class_of_the_last_answer(api: ApiClient, store: Store) -> None:
    one, _, _ = await _add(store, {"status_code": 500}, {"status_code": 404})
    silent, _, _ = await _add(store, {"status_code": None, "failure": "timeout"})
    await _add(store)
    for status_class, expected in (("4xx", [one]), ("5xx", []), ("none", [silent])):
        page = await api.get(DELIVERIES, status_class=status_class)
        assert _ids(page) == [public_id(DELIVERY, key) for key in expected], status_class


async def test_deliveries_are_found_by_text_in_reasons_and_answers(api: ApiClient, store: Store) -> None:
    one, _, _ = await _add(store, {"response_body": "Le café est fermé 100%_\\ \x7f".encode() + b"\xff"})
    zero, _, _ = await _add(store, {"response_body": b"\x00 Raw needle"})
    why, _, _ = await _add(store, {"reason": "Certificate Expired", "response_body": None})
    now = datetime.now(UTC)
    within: dict[str, Any] = {
        "created_after": (now - timedelta(hours=1)).isoformat(),
        "created_before": (now + timedelta(minutes=1)).isoformat(),  # one was made in this very millisecond
    }
    cases: list[tuple[str, list[UUID]]] = [
        ("CAFÉ est".replace("É", "é"), [one]),
        ("100%_\\", [one]),
        ("100_", []),
        ("303", []),
        ("Raw needle", [zero]),
        ("certificate expired", [why]),
        ("WHY RETRYING", [why, zero, one]),
    ]
    for text, expected in cases:
        found = _ids(await api.get(DELIVERIES, text=text, **within))
        assert sorted(found) == sorted(public_id(DELIVERY, key) for key in expected), text


async def test_text_is_sought_within_a_time_range_only(api: ApiClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "created_after"),
        ({"created_after": "2026-01-01T00:00:00Z"}, "created_before"),
        ({"created_after": "2026-01-01T00:00:00Z", "created_before": "2026-03-01T00:00:00Z"}, "created_before"),
    ]
    for query, field in cases:
        answer = await api.call("GET", DELIVERIES, text="needle", **query)
        assert (answer.status, list(answer.fields)) == (400, [field])
    for text in ("ab", "x" * 201, "a\x00b"):
        assert list((await api.call("GET", DELIVERIES, text=text)).fields) == ["text"]


async def test_a_search_that_takes_too_long_is_told_to_be_narrowed(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "SEARCH_TIMEOUT_MS", 50)
    async with store.transaction() as conn:
        await conn.execute("LOCK TABLE attempts IN ACCESS EXCLUSIVE MODE")
        answer = await api.call("GET", ATTEMPTS, outcome="dead")
    assert (answer.status, answer.code) == (422, "query_too_broad")
    assert "created_after" in answer.body["error"]["message"]
    assert (await api.call("GET", ATTEMPTS)).status == 200


async def test_searches_leave_connections_to_all_else(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "SEARCH_TIMEOUT_MS", 700)

    async def under_way() -> bool:
        async with store.connection() as conn:
            return bool(await conn.fetchval("SELECT count(*) > 4 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))

    async with store.transaction() as conn:
        await conn.execute("LOCK TABLE attempts IN ACCESS EXCLUSIVE MODE")
        searches = [asyncio.create_task(api.call("GET", ATTEMPTS)) for _ in range(20)]
        await eventually(under_way)
        await api.post("/v1/events", {"type": "a", "data": 1})
        assert not any(search.done() for search in searches)
        codes = {(await search).code for search in searches}
    assert codes == {"query_too_broad", "overloaded"}
