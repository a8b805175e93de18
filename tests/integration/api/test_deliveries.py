"""`/v1/deliveries`: list with filters, get with attempts, retry, cancel, replay."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7
from yarl import URL

from infra.store.store import Store
from schemas.ids import ATTEMPT, DEAD_LETTER, DELIVERY, EVENT, REPLAY, SUBSCRIPTION, public_id
from tests.support import rows
from tests.support.api import ApiClient

DELIVERIES = "/v1/deliveries"


async def _add(store: Store, status: str, **given: Any) -> UUID:
    async with store.transaction() as conn:
        tenant = given.get("tenant", "default")
        subscription = given.pop("subscription", None) or (await rows.add_subscription(conn, tenant=tenant)).id
        return await rows.add_delivery(conn, subscription, status, **given)


def _path(key: UUID) -> str:
    return f"{DELIVERIES}/{public_id(DELIVERY, key)}"


async def test_a_delivery_is_shown_with_its_attempts(api: ApiClient, store: Store) -> None:
    at = datetime.now(UTC).replace(microsecond=7000)
    key = await _add(store, "retrying", attempts=2, cycle=1, at=at, tenant="acme")
    async with store.transaction() as conn:
        headers = {"content-type": "text/plain", "server": "caf\ufffd"}
        await rows.add_attempt(
            conn, key, number=1, cycle=1, response_body=b"caf\xc3\xa9 \xff", response_headers=headers, first_byte_ms=11
        )
        await rows.add_attempt(
            conn, key, number=2, cycle=1, status_code=None, failure="timeout", reason="too slow", response_body=None
        )
        row = await rows.delivery(conn, key)
    shown = await api.get(_path(key))
    assert shown["id"] == public_id(DELIVERY, key)
    assert shown["event_id"] == public_id(EVENT, row["event_id"])
    assert shown["subscription_id"] == public_id(SUBSCRIPTION, row["subscription_id"])
    assert (shown["status"], shown["attempt_count"], shown["cycle"]) == ("retrying", 2, 1)
    assert (shown["tenant"], shown["event_type"], shown["reason"]) == ("acme", "order.created", "why retrying")
    assert datetime.fromisoformat(shown["created_at"]) == at
    assert datetime.fromisoformat(shown["next_attempt_at"]) == row["next_attempt_at"]
    assert shown["in_progress"] is False
    first, second = shown["attempts"]
    assert (first["number"], first["cycle"], first["status_code"], first["outcome"]) == (1, 1, 500, "retry")
    assert first["response_body"] == "café \ufffd"
    assert first["response_headers"] == headers
    assert first["timings"] == {"dns_ms": None, "connect_ms": None, "tls_ms": None, "first_byte_ms": 11}
    assert second["response_headers"] is None
    assert (second["failure"], second["reason"], second["response_body"]) == ("timeout", "too slow", None)


async def test_the_timeline_tells_what_the_rows_and_the_audit_log_say(api: ApiClient, store: Store) -> None:
    key = await _add(store, "dead")
    async with store.transaction() as conn:
        attempt = await rows.add_attempt(conn, key, outcome="dead")
        (letter,) = await rows.letters(conn, key)
    await api.post(f"{_path(key)}/replay")
    await api.post(f"{_path(key)}/retry")
    await api.post(f"{_path(key)}/cancel", status=200)
    shown = await api.get(_path(key))
    told = {one["what"]: one for one in shown["timeline"]}
    assert list(told) == [
        *("event_accepted", "event_admitted", "dead", "attempt"),  # the letter is made before the attempt here
        *("cycle_began", "retried", "canceled"),
    ]
    assert (told["attempt"]["attempt_id"], told["attempt"]["status_code"]) == (public_id(ATTEMPT, attempt), 500)
    assert (told["dead"]["reason"], told["dead"]["dead_letter_id"]) == (
        "it is dead",
        public_id(DEAD_LETTER, letter["id"]),
    )
    assert (told["cycle_began"]["cycle"], told["cycle_began"]["replay_id"], told["retried"]["cycle"]) == (1, None, 1)
    assert (told["canceled"]["at"], told["canceled"]["reason"]) == (shown["updated_at"], "canceled by operator")


async def test_a_delivery_that_is_being_attempted_is_shown_as_in_progress(api: ApiClient, store: Store) -> None:
    key = await _add(store, "pending", claim=rows.Claim(uuid7()))
    shown = await api.get(_path(key))
    assert (shown["in_progress"], shown["attempts"]) == (True, [])


async def test_deliveries_are_listed_by_subscription_status_type_tenant_event_and_time(
    api: ApiClient, store: Store
) -> None:
    at = datetime.now(UTC) - timedelta(minutes=5)
    key = await _add(store, "dead", tenant="acme", event_type="a.b", at=at)
    await _add(store, "held", tenant="other", event_type="a.c")
    await _add(store, "canceled", tenant="other", event_type="a.c")
    shown = await api.get(_path(key))
    just_after = (at + timedelta(milliseconds=2)).isoformat()
    for query in (
        {"subscription_id": shown["subscription_id"]},
        {"status": "dead"},
        {"status": "dead,delivered"},
        {"event_type": "a.b"},
        {"tenant": "acme"},
        {"event_id": shown["event_id"]},
        {"created_before": just_after},
        {"created_after": (at - timedelta(seconds=1)).isoformat(), "created_before": just_after},
    ):
        page = await api.get(DELIVERIES, **query)
        assert [one["id"] for one in page["data"]] == [shown["id"]], query
    several = await api.call("GET", f"{DELIVERIES}?status=dead&status=held")
    assert len(several.body["data"]) == 2
    assert len((await api.get(DELIVERIES))["data"]) == 3


async def test_a_list_goes_on_at_its_cursor_and_says_when_it_ends(api: ApiClient, store: Store) -> None:
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        keys = [await rows.add_delivery(conn, subscription, "held") for _ in range(5)]
    first = await api.get(DELIVERIES, limit=3)
    assert first.keys() == {"data", "has_more", "next_cursor"}
    assert (len(first["data"]), first["has_more"]) == (3, True)
    second = await api.get(DELIVERIES, limit=3, cursor=first["next_cursor"])
    assert (len(second["data"]), second["has_more"], second["next_cursor"]) == (2, False, None)
    shown = [one["id"] for one in first["data"] + second["data"]]
    assert shown == [public_id(DELIVERY, key) for key in sorted(keys, reverse=True)]


async def test_a_bad_query_is_refused_with_the_field_named(api: ApiClient) -> None:
    cases: list[tuple[str, str]] = [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=many", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%00", "cursor"),
        ("status=late", "status.0"),
        ("status=dead,%00", "status.1"),
        ("subscription_id=dlv_01h455vb4pex5vsknk084sn02q", "subscription_id"),
        ("event_id=%ff", "event_id"),
        ("tenant=a%00b", "tenant"),
        ("tenant=%ed%a0%80", "tenant"),
        ("event_type=a%00", "event_type"),
        ("created_after=yesterday", "created_after"),
        ("created_after=2026-01-01T00:00:00", "created_after"),
        ("created_after=1700000000", "created_after"),
        ("created_before=1800-01-01T00:00:00Z", "created_before"),
        ("created_before=9999-12-31T23:59:59-23:59", "created_before"),
        ("colour=red", "colour"),
        ("a%00b=1", "a\x00b"),
    ]
    for query, field in cases:
        async with api.session.get(
            URL(f"{api.url}{DELIVERIES}?{query}", encoded=True), headers={"Authorization": f"Bearer {api.key}"}
        ) as response:
            error = (await response.json())["error"]
        assert (response.status, error["code"]) == (400, "validation_failed"), query
        assert [detail["field"] for detail in error["details"]] == [field]


async def test_the_last_moment_there_is_can_be_asked_for(api: ApiClient, store: Store) -> None:
    key = await _add(store, "held")
    page = await api.get(DELIVERIES, created_before="9999-12-31T23:59:59.999999Z", created_after="1970-01-01T00:00:00Z")
    assert [one["id"] for one in page["data"]] == [public_id(DELIVERY, key)]


async def test_retry_puts_a_waiting_delivery_into_the_backlog(api: ApiClient, store: Store) -> None:
    key = await _add(store, "retrying", attempts=3)
    retried = await api.post(f"{_path(key)}/retry")
    assert (retried["status"], retried["attempt_count"], retried["next_attempt_at"]) == ("held", 3, None)
    async with store.connection() as conn:
        row = await rows.delivery(conn, key)
        assert (row["status"], row["cycle"]) == ("held", 0)
        assert await rows.mode(conn, row["subscription_id"]) == "held"


async def test_cancel_ends_a_waiting_delivery(api: ApiClient, store: Store) -> None:
    key = await _add(store, "retrying")
    answer = await api.call("POST", f"{_path(key)}/cancel")
    assert answer.status == 200
    assert (answer.body["status"], answer.body["reason"]) == ("canceled", "canceled by operator")


async def test_replay_begins_an_ended_delivery_again_with_the_same_event(api: ApiClient, store: Store) -> None:
    key = await _add(store, "dead", attempts=10)
    before = await api.get(_path(key))
    replayed = await api.post(f"{_path(key)}/replay")
    assert (replayed["status"], replayed["cycle"], replayed["attempt_count"]) == ("held", 1, 0)
    # The webhook-id is the event's id.
    assert (replayed["id"], replayed["event_id"]) == (before["id"], before["event_id"])


async def test_a_command_in_the_wrong_state_is_a_conflict_that_says_why(api: ApiClient, store: Store) -> None:
    cases: list[tuple[str, str, str]] = [
        ("delivered", "retry", "delivered"),
        ("dead", "retry", "replayed"),
        ("delivered", "cancel", "delivered"),
        ("canceled", "cancel", "canceled"),
        ("held", "replay", "held"),
        ("retrying", "replay", "retrying"),
    ]
    for status, command, word in cases:
        key = await _add(store, status)
        answer = await api.call("POST", f"{_path(key)}/{command}")
        assert (answer.status, answer.code) == (409, "conflict")
        assert word in answer.body["error"]["message"]
        assert (await api.get(_path(key)))["status"] == status


async def test_a_delivery_that_is_being_attempted_is_not_retried(api: ApiClient, store: Store) -> None:
    key = await _add(store, "retrying", claim=rows.Claim(uuid7()))
    answer = await api.call("POST", f"{_path(key)}/retry")
    assert (answer.status, answer.code) == (409, "conflict")
    assert "attempted just now" in answer.body["error"]["message"]


async def test_a_delivery_to_a_paused_subscription_is_not_replayed(api: ApiClient, store: Store) -> None:
    key = await _add(store, "dead")
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET state = 'paused'")
    answer = await api.call("POST", f"{_path(key)}/replay")
    assert (answer.status, answer.code) == (409, "conflict")
    assert "paused" in answer.body["error"]["message"]


async def test_every_id_that_there_can_be_may_be_asked_for(api: ApiClient) -> None:
    """The first and the last, which bound no range of keys beyond them."""
    for number in (0, 2**128 - 1):
        key = UUID(int=number)
        for name, prefix in (("event_id", EVENT), ("subscription_id", SUBSCRIPTION), ("replay_id", REPLAY)):
            assert (await api.get(DELIVERIES, **{name: public_id(prefix, key)}))["data"] == []
        assert (await api.get("/v1/attempts", delivery_id=public_id(DELIVERY, key)))["data"] == []
        assert (await api.call("GET", _path(key))).status == 404


async def test_what_is_not_there_is_404_and_what_is_no_id_names_the_field(api: ApiClient) -> None:
    cases: list[str] = ["", "/retry", "/cancel", "/replay"]
    for tail in cases:
        method = "POST" if tail else "GET"
        missing = await api.call(method, f"{_path(uuid7())}{tail}")
        assert (missing.status, missing.code) == (404, "not_found")
        for other in (public_id(EVENT, uuid7()), "dlv_", "x", "%00", "dlv_01h455vb4pex5vsknk084sn02q%00"):
            answer = await api.call(method, f"{DELIVERIES}/{other}{tail}")
            assert (answer.status, answer.code) == (400, "validation_failed"), other
            assert list(answer.fields) == ["delivery_id"]
