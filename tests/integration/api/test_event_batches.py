"""`/v1/events/batch`: each event with its own result, over the real store."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch

import orjson
import pytest

from infra.broker.base import Outgoing
from infra.broker.postgres import PostgresBroker
from infra.settings import Settings
from infra.store import api_keys
from infra.store.store import Store
from schemas.errors import BrokerError, PublishTimeout
from schemas.events import build_event
from schemas.ids import EVENT, public_id
from tests.support import rows
from tests.support.api import ApiClient, api_settings, running_api

BATCH = "/v1/events/batch"
DATA = b'{ "n": 12345678901234567890123, "x": 1.10,\n"b":1e2 , "a":"\\u00e9\\/", "b":2}'


async def _published(store: Store) -> list[tuple[str, str, bytes]]:
    """Of each message in the queue, in order: tenant, external id, data."""
    async with store.connection() as conn:
        found = await conn.fetch("SELECT headers, body FROM queue_messages ORDER BY id")
    headers = [orjson.loads(one["headers"]) if isinstance(one["headers"], str) else one["headers"] for one in found]
    return [
        (told["cloudEvents_tenant"], told["cloudEvents_id"], one["body"])
        for told, one in zip(headers, found, strict=True)
    ]


def _results(body: dict[str, Any]) -> list[str]:
    return [one["result"] for one in body["results"]]


async def test_each_event_has_its_own_result_in_order_and_its_data_stays_byte_for_byte(
    api: ApiClient, store: Store
) -> None:
    async with store.transaction() as conn:
        key = await rows.add_event(conn, source="shop", external_id="old", type="a", digest=b"another")
    body = (
        b'{"events":[{"type":"a","data":%b,"id":"1"},{"type":"a b","data":1,"id":"2"},7,'
        b'{"type":"a","data":%b,"id":"1"},{"type":"a","data":2,"id":"1"},'
        b'{"type":"a","data":1,"source":"shop","id":"old"},{"type":"a","data":3}]}'
    ) % (DATA, DATA)
    answer = await api.call("POST", BATCH, body)
    assert answer.status == 200
    results = answer.body["results"]
    assert _results(answer.body) == ["accepted", "invalid", "invalid", "duplicate", "conflict", "conflict", "accepted"]
    assert results[0]["event"]["external_id"] == "1"
    assert results[3]["event"] == results[0]["event"] | {"duplicate": True}
    assert [one["field"] for one in results[1]["error"]["details"]] == ["type"]
    assert results[1]["error"]["code"] == results[2]["error"]["code"] == "validation_failed"
    assert public_id(EVENT, key) in results[5]["error"]["message"]
    assert await _published(store) == [("default", "1", DATA), ("default", results[6]["external_id"], b"3")]


async def test_an_event_that_was_admitted_is_a_duplicate_with_the_id_of_the_first(api: ApiClient, store: Store) -> None:
    body = {"events": [{"type": "a", "data": n, "id": f"{n}"} for n in range(3)]}
    first = await api.post(BATCH, body, status=200)
    async with store.transaction() as conn:
        await conn.execute("DELETE FROM queue_messages")
        one = build_event(type="a", data=b"1", external_id="1", source="unknown", time=datetime.now(UTC))
        key = await rows.add_event(conn, source="unknown", external_id="1", type="a", digest=one.digest)
    second = await api.post(BATCH, body, status=200)
    assert _results(first) == ["accepted"] * 3
    assert _results(second) == ["accepted", "duplicate", "accepted"]
    assert second["results"][1]["event"]["id"] == public_id(EVENT, key)


async def test_what_the_broker_did_not_confirm_is_told_with_the_id_to_send_it_again_with(
    api: ApiClient, store: Store
) -> None:
    whole = PostgresBroker.publish_many

    async def second_fails(
        self: PostgresBroker, outgoing: Sequence[Outgoing], *, timeout_s: float
    ) -> Sequence[BrokerError | None]:
        kept = [one for n, one in enumerate(outgoing) if n != 1]
        confirmed = list(await whole(self, kept, timeout_s=timeout_s))
        return [*confirmed[:1], PublishTimeout("no confirm"), *confirmed[1:]]

    repeated = {"type": "a", "data": 2, "id": "2"}
    events = [{"type": "a", "data": 1}, repeated, {"type": "a", "data": 3, "id": "3"}, repeated]
    with patch.object(PostgresBroker, "publish_many", second_fails):
        body = await api.post(BATCH, {"events": events}, status=200)
    assert _results(body) == ["accepted", "not_published", "accepted", "not_published"]
    failed = body["results"][1]
    assert (failed["external_id"], failed["event"], failed["error"]["code"]) == ("2", None, "broker_unavailable")
    assert failed["error"]["details"] == [{"field": "id", "message": "publish it again with the id 2"}]
    assert [event for _, event, _ in await _published(store)] == [body["results"][0]["external_id"], "3"]
    again = await api.post(BATCH, {"events": [repeated]}, status=200)
    assert (_results(again), again["results"][0]["external_id"]) == (["accepted"], "2")


async def test_a_tenants_key_may_name_only_its_tenant_in_each_event(api: ApiClient, store: Store) -> None:
    async with store.transaction() as conn:
        key, _ = await api_keys.create(conn, "acme's", tenant="acme")
    events = [{"type": "a", "data": n} | named for n, named in enumerate(({}, {"tenant": "acme"}, {"tenant": "other"}))]
    answer = await api.call("POST", BATCH, {"events": events}, key=key)
    assert _results(answer.body) == ["accepted", "accepted", "invalid"]
    assert answer.body["results"][2]["error"]["code"] == "forbidden"
    assert [tenant for tenant, _, _ in await _published(store)] == ["acme", "acme"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"[]", "events"),
        (b"{}", "events"),
        (b'{"events":null}', "events"),
        (b'{"events":[]}', "events"),
        (b'{"events":[%b]}' % b",".join([b"1"] * 1001), "events"),
        (b'{"events":[1],"more":1}', "more"),
    ],
)
async def test_a_batch_that_is_none_is_refused_whole(api: ApiClient, body: bytes, field: str) -> None:
    answer = await api.call("POST", BATCH, body)
    assert (answer.status, answer.code, list(answer.fields)) == (400, "validation_failed", [field])


async def test_a_batch_has_a_bound_of_its_own_in_bytes_and_its_events_theirs(store: Store, database_url: str) -> None:
    settings: Settings = api_settings(database_url, max_event_bytes=100, max_batch_bytes=300_000)
    async with running_api(settings, store) as api:
        events = b'{"type":"a","data":1},{"type":"a","data":"%b"}' % (b"x" * 199_000)
        taken = await api.call("POST", BATCH, b'{"events":[%b]}' % events)
        assert _results(taken.body) == ["accepted", "invalid"]
        assert taken.body["results"][1]["error"]["code"] == "payload_too_large"
        refused = await api.call("POST", BATCH, b'{"events":[%b]}' % events.replace(b"x", b"xx"))
        assert (refused.status, refused.code) == (413, "payload_too_large")
        assert (await api.call("POST", BATCH, b'{"events":[' + b"[" * 200)).code == "invalid_json"


async def test_a_thousand_events_are_published_in_order(api: ApiClient, store: Store) -> None:
    body = await api.post(BATCH, {"events": [{"type": "a", "data": n} for n in range(1000)]}, status=200)
    assert _results(body) == ["accepted"] * 1000
    assert [int(data) for _, _, data in await _published(store)] == list(range(1000))
