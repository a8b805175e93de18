"""`/v1/events/{id}/redeliver` and `/expunge`: what they do, what they refuse, and what is left of an expunged event."""

import hashlib
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from consumer_api import event_actions
from consumer_api.cursors import encode_cursor
from infra.store import tables
from infra.store.dead_letters import pack_properties
from infra.store.store import Store
from schemas.ids import DEAD_LETTER, DELIVERY, EVENT, SUBSCRIPTION, delivery_key, public_id
from schemas.messages import Message
from tests.support import rows
from tests.support.api import ApiClient

SECRET = b'{"iban":"DE02120300000000202051"}'


def _path(event: UUID, action: str = "") -> str:
    return f"/v1/events/{public_id(EVENT, event)}{action}"


async def _event(store: Store, *statuses: str, **given: Any) -> tuple[UUID, list[UUID], list[UUID]]:
    """An event with deliveries, each to a subscription of its own; and the keys of all."""
    async with store.transaction() as conn:
        event = await rows.add_event(conn, **given)
        tenant = given.get("tenant", "default")
        subscriptions = [(await rows.add_subscription(conn, tenant=tenant)).id for _ in statuses]
        deliveries = [
            await rows.add_delivery(conn, subscription, status, event=event, tenant=tenant)
            for subscription, status in zip(subscriptions, statuses, strict=True)
        ]
    return event, subscriptions, deliveries


async def _rows(store: Store, keys: list[UUID]) -> list[tuple[str, int]]:
    async with store.connection() as conn:
        return [((row := await rows.delivery(conn, key))["status"], row["cycle"]) for key in keys]


async def test_all_that_has_ended_begins_again_and_of_the_rest_it_says_why_not(api: ApiClient, store: Store) -> None:
    event, subscriptions, keys = await _event(store, "delivered", "dead", "canceled", "held", "delivered")
    async with store.transaction() as conn:
        await conn.execute("UPDATE subscriptions SET state = 'paused' WHERE id = $1", subscriptions[4])
    done = await api.post(_path(event, "/redeliver"))
    assert (done["event_id"], done["redelivered"], done["created"], done["skipped"]) == (
        public_id(EVENT, event),
        *(3, 0, 2),
    )
    assert (done["has_more"], done["next_cursor"]) == (False, None)
    said = {one["delivery_id"]: (one["result"], one["reason"]) for one in done["deliveries"]}
    assert [said[public_id(DELIVERY, key)][0] for key in keys] == [*["redelivered"] * 3, "skipped", "skipped"]
    assert "held" in (said[public_id(DELIVERY, keys[3])][1] or "")
    assert "paused" in (said[public_id(DELIVERY, keys[4])][1] or "")
    assert await _rows(store, keys) == [*[("held", 1)] * 3, ("held", 0), ("delivered", 0)]
    async with store.connection() as conn:
        logged = await conn.fetchrow("SELECT * FROM audit_log WHERE action = 'event.redelivered'")
    assert logged is not None
    assert logged["target"] == public_id(EVENT, event)
    assert logged["after"] == {"subscription_id": None, "redelivered": 3, "created": 0, "skipped": 2}


async def test_an_event_of_many_is_sent_again_a_part_at_a_time(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_actions, "MOST_AT_ONCE", 2)
    event, _, keys = await _event(store, *["delivered"] * 3)
    first = await api.post(_path(event, "/redeliver"), {})
    assert (first["redelivered"], first["has_more"]) == (2, True)
    rest = await api.post(f"{_path(event, '/redeliver')}?cursor={first['next_cursor']}")
    assert (rest["redelivered"], rest["has_more"]) == (1, False)
    assert await _rows(store, keys) == [("held", 1)] * 3


async def test_one_that_is_named_is_sent_again_alone(api: ApiClient, store: Store) -> None:
    event, subscriptions, keys = await _event(store, "delivered", "delivered", "held")
    asked = {"subscription_id": public_id(SUBSCRIPTION, subscriptions[0])}
    done = await api.post(_path(event, "/redeliver"), asked)
    assert [one["result"] for one in done["deliveries"]] == ["redelivered"]
    assert await _rows(store, keys) == [("held", 1), ("delivered", 0), ("held", 0)]
    answer = await api.call("POST", _path(event, "/redeliver"), asked)
    assert (answer.status, answer.code) == (409, "conflict")


async def test_one_that_had_no_delivery_of_it_gets_one(api: ApiClient, store: Store) -> None:
    event, _, _ = await _event(store)
    async with store.transaction() as conn:
        later = (await rows.add_subscription(conn, filter={"data.n": 2})).id
    done = await api.post(_path(event, "/redeliver"), {"subscription_id": public_id(SUBSCRIPTION, later)})
    assert (done["created"], done["deliveries"][0]["result"]) == (1, "created")
    key = delivery_key(event, later)
    assert done["deliveries"][0]["delivery_id"] == public_id(DELIVERY, key)
    assert await _rows(store, [key]) == [("held", 1)]
    async with store.connection() as conn:
        assert await rows.mode(conn, later) == "held"
    again = await api.call("POST", _path(event, "/redeliver"), {"subscription_id": public_id(SUBSCRIPTION, later)})
    assert (again.status, again.code) == (409, "conflict")


async def test_a_subscription_that_may_not_get_it_is_refused(api: ApiClient, store: Store) -> None:
    event, _, _ = await _event(store, tenant="acme")
    async with store.transaction() as conn:
        cases = {
            (await rows.add_subscription(conn, tenant="acme", event_types=["other.#"])).id: (409, "do not match"),
            (await rows.add_subscription(conn, tenant="other")).id: (409, "another tenant"),
            (paused := await rows.add_subscription(conn, tenant="acme")).id: (409, "paused"),
            (gone := await rows.add_subscription(conn, tenant="acme")).id: (404, "no such subscription"),
            uuid7(): (404, "no such subscription"),
        }
        await conn.execute("UPDATE subscriptions SET state = 'paused' WHERE id = $1", paused.id)
        await conn.execute("UPDATE subscriptions SET deleted_at = now() WHERE id = $1", gone.id)
    for key, (status, text) in cases.items():
        answer = await api.call("POST", _path(event, "/redeliver"), {"subscription_id": public_id(SUBSCRIPTION, key)})
        assert (answer.status, text in answer.body["error"]["message"]) == (status, True), answer.raw
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM deliveries") == 0
    acme = await api.of_tenant("acme")
    theirs = [public_id(SUBSCRIPTION, key) for key in list(cases)[1:2]]
    assert (await acme.call("POST", _path(event, "/redeliver"), {"subscription_id": theirs[0]})).status == 404


async def test_bad_requests_name_the_field_and_what_is_not_there_is_404(api: ApiClient, store: Store) -> None:
    event, _, _ = await _event(store)
    answer = await api.call("POST", _path(event, "/redeliver"), {"subscription_id": "x"})
    assert list(answer.fields) == ["subscription_id"]
    named = {"subscription_id": public_id(SUBSCRIPTION, uuid7())}
    for cursor in ("x", encode_cursor(event)):
        answer = await api.call("POST", _path(event, "/redeliver"), named, cursor=cursor)
        assert (answer.status, list(answer.fields)) == (400, ["cursor"])
    # One that leads elsewhere leads to nothing.
    for cursor in (encode_cursor(UUID(int=0)), encode_cursor(UUID(int=2**128 - 1))):
        assert (await api.call("POST", _path(event, "/redeliver"), cursor=cursor)).body["deliveries"] == []
    for action in ("/redeliver", "/expunge"):
        assert (await api.call("POST", _path(uuid7(), action))).code == "not_found"
        assert list((await api.call("POST", f"/v1/events/x{action}")).fields) == ["event_id"]


async def test_a_redelivery_with_an_idempotency_key_is_done_once(api: ApiClient, store: Store) -> None:
    event, _, keys = await _event(store, "delivered")
    headers = {"Idempotency-Key": "once"}
    first = await api.call("POST", _path(event, "/redeliver"), headers=headers)
    async with store.transaction() as conn:
        await conn.execute("UPDATE deliveries SET status = 'delivered'")
    second = await api.call("POST", _path(event, "/redeliver"), headers=headers)
    assert (first.raw, second.headers["Idempotency-Replayed"]) == (second.raw, "true")
    assert await _rows(store, keys) == [("delivered", 1)]


async def test_of_an_expunged_event_no_payload_is_left_in_any_row(api: ApiClient, store: Store) -> None:
    digest = hashlib.sha256(SECRET).digest()
    claim = rows.Claim(uuid7())
    event, _, keys = await _event(
        store, "delivered", "dead", "held", "retrying", data=SECRET, digest=digest, tenant="acme", external_id="e-1"
    )
    async with store.transaction() as conn:
        one = (await rows.add_subscription(conn, tenant="acme")).id
        keys.append(await rows.add_delivery(conn, one, "pending", event=event, tenant="acme", claim=claim))
        await rows.add_attempt(conn, keys[0], response_body=SECRET, response_headers={"location": SECRET.decode()})
        await conn.execute("UPDATE events SET headers = $2 WHERE id = $1", event, {"x-note": SECRET.decode()})
        conflicting = await rows.add_message_letter(
            conn, kind="conflict", event_id=event, body=SECRET, headers=pack_properties(Message(SECRET)), tenant="acme"
        )
        other = await rows.add_event(conn, data=b'{"kept":1}')
    assert await _telling(store, digest) == ["attempts", "dead_letters", "event_keys", "events"]
    done = await api.post(_path(event, "/expunge"), status=200)
    assert (done["id"], done["canceled"], done["in_progress"]) == (public_id(EVENT, event), 3, 1)
    states = ["delivered", "dead", "canceled", "canceled", "canceled"]
    assert [status for status, _ in await _rows(store, keys)] == states
    async with store.connection() as conn:
        assert (await rows.delivery(conn, keys[2]))["reason"] == "its event was expunged"
    assert await _telling(store, digest) == []
    shown = await api.get(_path(event))
    assert (shown["data"], shown["headers"], shown["expunged_at"]) == (None, {}, done["expunged_at"])
    assert (shown["external_id"], shown["type"]) == ("e-1", "order.created")
    assert (await api.get(_path(other)))["data"] == {"kept": 1}
    for written in ("csv", "ndjson", "xml"):
        exported = await api.call("GET", "/v1/events", format=written, tenant="acme")
        assert (exported.status, b"e-1" in exported.raw, b"iban" in exported.raw) == (200, True, False)
    listed = await api.get("/v1/events")
    assert [one["expunged_at"] is None for one in listed["data"]] == [True, False]
    for letter in (await _letter_of(store, keys[1]), conflicting):
        letter_path = f"/v1/dead-letters/{public_id(DEAD_LETTER, letter)}"
        assert (await api.get(letter_path))["body_base64"] is None
        assert (await api.call("GET", f"{letter_path}/body")).code == "not_found"
        assert (await api.call("POST", f"{letter_path}/replay")).code == "expunged"


async def _telling(store: Store, digest: bytes) -> list[str]:
    """The tables in which the payload stands, or what it could be guessed from."""
    text = SECRET.decode()
    marks = [f"%{mark}%" for mark in (text, text.replace('"', '\\"'), SECRET.hex(), digest.hex())]
    async with store.connection() as conn:
        found = {
            table: await conn.fetchval(f'SELECT count(*) FROM "{table}" AS t WHERE t::text LIKE ANY($1)', marks)
            for table in tables.metadata.tables
        }
    return sorted(table for table, number in found.items() if number)


async def _letter_of(store: Store, delivery: UUID) -> UUID:
    async with store.connection() as conn:
        found: UUID = (await rows.letters(conn, delivery))[0]["id"]
    return found


async def test_an_expunged_event_is_not_sent_again_by_any_way(api: ApiClient, store: Store) -> None:
    event, subscriptions, keys = await _event(store, "delivered", "held")
    await api.post(_path(event, "/expunge"), status=200)
    named = {"subscription_id": public_id(SUBSCRIPTION, subscriptions[0])}
    for path, body in (
        (_path(event, "/redeliver"), None),
        (_path(event, "/redeliver"), named),
        *((f"/v1/deliveries/{public_id(DELIVERY, key)}/replay", None) for key in keys),
        *((f"/v1/deliveries/{public_id(DELIVERY, key)}/retry", None) for key in keys),
    ):
        answer = await api.call("POST", path, body)
        assert (answer.status, answer.code) == (409, "expunged"), path
    replay = await api.post("/v1/replays", {**named, "status": ["delivered"]})
    async with store.transaction() as conn:
        await rows.step_replay(conn, batch=10)
    done = await api.get(f"/v1/replays/{replay['id']}")
    assert (done["replayed"], done["skipped"], done["state"]) == (0, 1, "completed")
    assert await _rows(store, keys) == [("delivered", 0), ("canceled", 0)]


async def test_what_is_published_again_after_it_was_expunged_is_a_duplicate(api: ApiClient, store: Store) -> None:
    """Whatever it says: what the first one said is not known any more."""
    event, _, _ = await _event(store, digest=b"d" * 32, source="api", external_id="e-1")
    said = {"type": "order.created", "id": "e-1", "source": "api", "data": {"n": 1}}
    assert (await api.call("POST", "/v1/events", said)).code == "conflict"
    await api.post(_path(event, "/expunge"), status=200)
    again = await api.post("/v1/events", said)
    assert (again["duplicate"], again["id"]) == (True, public_id(EVENT, event))
    (result,) = (await api.post("/v1/events/batch", {"events": [said]}, status=200))["results"]
    assert result["result"] == "duplicate"


async def test_expunging_again_changes_nothing_and_takes_its_own_scope(api: ApiClient, store: Store) -> None:
    event, _, _ = await _event(store, "held", tenant="acme")
    for scopes in (["events:write", "events:read"], ["replays:write", "deliveries:write"]):
        other = await api.of_tenant("acme", *scopes)
        assert (await other.call("POST", _path(event, "/expunge"))).code == "forbidden"
    acme = await api.of_tenant("acme", "events:expunge")
    first = await acme.post(_path(event, "/expunge"), status=200)
    second = await acme.post(_path(event, "/expunge"), status=200)
    assert (first["canceled"], second["canceled"]) == (1, 0)
    assert first["expunged_at"] == second["expunged_at"]
    async with store.connection() as conn:
        logged = await conn.fetch("SELECT tenant, target, before, after FROM audit_log WHERE action = 'event.expunged'")
    assert {one["tenant"] for one in logged} == {"acme"}
    assert (logged[0]["target"], logged[0]["before"]) == (public_id(EVENT, event), None)
