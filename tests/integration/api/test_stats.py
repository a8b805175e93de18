"""`GET /v1/subscriptions/{id}/stats`, and `health` of a subscription."""

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from uuid_utils.compat import uuid7

from consumer_api import searching
from infra.store import api_keys, stats
from infra.store.store import Store
from schemas.health import Health
from schemas.ids import SUBSCRIPTION, public_id
from tests.support import rows
from tests.support.api import ApiClient

SUBSCRIPTIONS = "/v1/subscriptions"
HOUR = timedelta(hours=1)
NOW = datetime.now(UTC)


def _path(key: UUID) -> str:
    return f"{SUBSCRIPTIONS}/{public_id(SUBSCRIPTION, key)}"


async def _attempted(
    conn: asyncpg.Connection, subscription: UUID, status: str, *, at: datetime, **attempt: Any
) -> UUID:
    """A delivery, and an attempt at it a moment later."""
    key = await rows.add_delivery(conn, subscription, status, at=at)
    begun = at + timedelta(seconds=1)
    attempt_id = UUID(int=(int(begun.timestamp() * 1000) << 80) | (uuid7().int & ((1 << 80) - 1)))
    await rows.add_attempt(conn, key, id=attempt_id, started_at=begun, **attempt)
    return key


@pytest.fixture
async def subscription(store: Store) -> UUID:
    async with store.transaction() as conn:
        return (await rows.add_subscription(conn, tenant="acme")).id


async def test_deliveries_and_attempts_are_counted_by_status_answer_and_hour(
    api: ApiClient, store: Store, subscription: UUID
) -> None:
    delivered = {"outcome": "delivered", "status_code": 200}
    early, late = NOW - 3 * HOUR, NOW - HOUR
    async with store.transaction() as conn:
        for number in range(1, 101):
            await _attempted(conn, subscription, "delivered", at=early, duration_ms=number, **delivered)
        await _attempted(conn, subscription, "retrying", at=late, duration_ms=500)
        no_answer = {"outcome": "dead", "status_code": None, "failure": "timeout"}
        await _attempted(conn, subscription, "dead", at=late, duration_ms=9000, **no_answer)
        await rows.add_delivery(conn, subscription, "held", at=late)
        await _attempted(conn, subscription, "dead", at=NOW - 6 * HOUR)  # before the range
        other = (await rows.add_subscription(conn)).id
        await _attempted(conn, other, "dead", at=late)
    shown = await api.get(f"{_path(subscription)}/stats", since=(NOW - 5 * HOUR).isoformat())
    assert (shown["complete"], shown["health"]) == (True, "healthy")
    assert shown["deliveries"] == {
        "count": 103,
        "by_status": {"pending": 0, "held": 1, "retrying": 1, "delivered": 100, "dead": 1, "canceled": 0},
        "success_rate": 0.9901,
    }
    latency = {"p50": 51, "p95": 97, "p99": 500}
    assert shown["attempts"] == {"count": 102, "delivered": 100, "success_rate": 0.9804, "latency_ms": latency}
    assert [(one["status_code"], one["failure"], one["count"], one["delivered"]) for one in shown["by_answer"]] == [
        (200, None, 100, 100),
        (500, None, 1, 0),
        (None, "timeout", 1, 0),
    ]
    first, second = shown["by_hour"]
    assert (first["count"], first["success_rate"], first["latency_ms"]) == (100, 1, {"p50": 50, "p95": 95, "p99": 99})
    assert (second["count"], second["success_rate"]) == (2, 0)
    begun = early + timedelta(seconds=1)
    assert datetime.fromisoformat(first["hour"]) == begun.replace(minute=0, second=0, microsecond=0)


async def test_without_deliveries_there_are_no_rates(api: ApiClient, subscription: UUID) -> None:
    shown = await api.get(f"{_path(subscription)}/stats")
    assert (shown["deliveries"]["count"], shown["deliveries"]["success_rate"]) == (0, None)
    assert shown["attempts"] == {"count": 0, "delivered": 0, "success_rate": None, "latency_ms": None}
    assert (shown["by_answer"], shown["by_hour"], shown["health"]) == ([], [], "healthy")
    assert datetime.fromisoformat(shown["until"]) - datetime.fromisoformat(shown["since"]) == timedelta(days=1)


async def test_a_range_is_from_its_beginning_to_before_its_end(
    api: ApiClient, store: Store, subscription: UUID
) -> None:
    moments = [(NOW - hours * HOUR).replace(microsecond=0) for hours in (3, 2, 1)]
    async with store.transaction() as conn:
        for moment in moments:
            await rows.add_delivery(conn, subscription, "held", at=moment)
    path = f"{_path(subscription)}/stats"
    for since, until, count in ((0, 2, 2), (1, 2, 1), (0, None, 3)):
        query = {"since": moments[since].isoformat()} | ({} if until is None else {"until": moments[until].isoformat()})
        assert (await api.get(path, **query))["deliveries"]["count"] == count


async def test_a_bad_range_is_refused_with_the_field_named(api: ApiClient, subscription: UUID) -> None:
    days = [(NOW - timedelta(days=days)).isoformat() for days in range(9)]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"since": days[0], "until": days[1]}, "since"),
        ({"since": days[8]}, "since"),
        ({"since": (NOW + HOUR).isoformat()}, "since"),
        ({"until": "1970-01-01T00:00:00Z"}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"hours": "3"}, "hours"),
    ]
    for query, field in cases:
        answer = await api.call("GET", f"{_path(subscription)}/stats", **query)
        assert (answer.status, list(answer.fields)) == (400, [field]), query
    assert (await api.call("GET", f"{_path(subscription)}/stats", since=days[6])).status == 200


async def test_of_more_than_is_counted_the_newest_are_and_it_is_told(
    api: ApiClient, store: Store, subscription: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stats, "MAX_COUNTED", 2)
    moments = [(NOW - hours * HOUR).replace(microsecond=0) for hours in (3, 2, 1)]
    async with store.transaction() as conn:
        for moment in moments[1:]:
            await _attempted(conn, subscription, "retrying", at=moment)
    assert (await api.get(f"{_path(subscription)}/stats"))["complete"] is True
    async with store.transaction() as conn:
        await _attempted(conn, subscription, "retrying", at=moments[0])
    shown = await api.get(f"{_path(subscription)}/stats")
    assert (shown["complete"], shown["deliveries"]["count"], shown["attempts"]["count"]) == (False, 2, 2)
    assert moments[0] <= datetime.fromisoformat(shown["since"]) < moments[1]


async def test_what_takes_too_long_is_told_how_to_narrow_it(
    api: ApiClient, subscription: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "SEARCH_TIMEOUT_MS", 20)
    monkeypatch.setattr(
        stats, "_DELIVERIES", "SELECT pg_sleep(1)::text AS status, 1 AS count, $1::uuid, $2::uuid, $3::uuid"
    )
    answer = await api.call("GET", f"{_path(subscription)}/stats")
    assert (answer.status, answer.code) == (422, "query_too_broad")
    assert "since and until" in answer.body["error"]["message"]


async def test_another_tenants_stats_are_not_there(api: ApiClient, store: Store, subscription: UUID) -> None:
    async with store.transaction() as conn:
        key, _ = await api_keys.create(conn, "other's", tenant="other")
    answer = await api.call("GET", f"{_path(subscription)}/stats", key=key)
    assert (answer.status, answer.code) == (404, "not_found")


async def test_recent_attempts_tell_in_the_stats_what_a_row_alone_does_not(
    api: ApiClient, store: Store, subscription: UUID
) -> None:
    async with store.transaction() as conn:
        for number in range(20):
            outcome = "delivered" if number < 9 else "retry"
            await _attempted(conn, subscription, "retrying", at=NOW - HOUR, outcome=outcome)
    assert (await api.get(_path(subscription)))["health"] == "healthy"
    assert (await api.get(f"{_path(subscription)}/stats"))["health"] == "failing"


async def test_a_list_by_health_has_those_that_show_it(api: ApiClient, store: Store) -> None:
    async with store.transaction() as conn:
        for state, until, failures in product(("enabled", "paused", "disabled"), (None, NOW), (0, 1, 4, 5, 6)):
            row = await rows.add_subscription(conn)
            await conn.execute(
                "UPDATE subscriptions SET state = $2, breaker_until = $3, failures = $4 WHERE id = $1",
                *(row.id, state, until, failures),
            )
    shown = (await api.get(SUBSCRIPTIONS, limit=200))["data"]
    seen = {one["health"] for one in shown}
    assert seen == set(Health)
    for health in Health:
        found = (await api.get(SUBSCRIPTIONS, limit=200, health=health))["data"]
        assert found == [one for one in shown if one["health"] == health]
    answer = await api.call("GET", SUBSCRIPTIONS, health="ill")
    assert (answer.status, list(answer.fields)) == (400, ["health"])
