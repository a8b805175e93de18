"""`/v1/events`: publish (over both brokers), list, get."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from consumer_api.app import make_app
from infra.broker.base import Queue, Received
from infra.broker.open import open_broker
from infra.crypto import Vault
from infra.early_check import open_early_check
from infra.settings import Settings
from infra.store import api_keys
from infra.store.store import Store
from infra.telemetry import open_telemetry
from schemas.events import Event, read_event
from schemas.ids import EVENT, event_key, public_id
from tests.support import rows
from tests.support.api import ApiClient, api_settings, running_api

EVENTS = "/v1/events"
# What a parser that reads and writes again would change: digits, spaces, order, escapes, a name given twice.
DATA = b'{ "n": 12345678901234567890123, "x": 1.10,\n"b":1e2 , "a":"\\u00e9\\u0000/\\/", "b":2}'


@pytest.fixture(params=["postgresql", "rabbitmq"])
def both(request: pytest.FixtureRequest, database_url: str) -> Settings:
    """Settings over each broker."""
    given = {"broker_url": request.getfixturevalue("rabbit_url")} if request.param == "rabbitmq" else {}
    return api_settings(database_url, **given)


@pytest.fixture
async def over_both(both: Settings, store: Store) -> AsyncIterator[ApiClient]:
    async with running_api(both, store) as client:
        yield client


async def _queued(settings: Settings, number: int = 1) -> list[Received]:
    """So many messages of the events queue."""
    found: list[Received] = []
    async with open_broker(settings) as broker, broker.consume(Queue.EVENTS, prefetch=100) as consumer:
        while len(found) < number:
            received = await consumer.receive(100)
            await consumer.ack(received)
            found += received
    return found


def _read(received: Received) -> Event:
    event = read_event(received.message, now=datetime.now(UTC), fresh_id="fresh", max_bytes=1_000_000)
    assert isinstance(event, Event)
    return event


async def test_a_publish_is_answered_202_once_the_broker_has_the_event_byte_for_byte(
    over_both: ApiClient, both: Settings
) -> None:
    body = (
        b'{"type":"order.created","data":%b,"id":"4711","source":"shop","tenant":"acme","subject":"o/1","headers":{"X-A":"1"}}'
        % DATA
    )
    answer = await over_both.call("POST", EVENTS, body)
    assert answer.status == 202
    (received,) = await _queued(both)
    assert received.routing_key == "order.created"
    event = _read(received)
    assert event.data == DATA
    assert (event.type, event.external_id, event.source) == ("order.created", "4711", "shop")
    assert (event.tenant, event.subject, event.headers) == ("acme", "o/1", {"X-A": "1"})
    assert answer.body == {
        "id": public_id(EVENT, event_key(event.accepted_ms or 0, "acme", "shop", "4711")),
        "external_id": "4711",
        "tenant": "acme",
        "source": "shop",
        "type": "order.created",
        "subject": "o/1",
        "time": event.time.isoformat().replace("+00:00", "Z"),
        "duplicate": False,
        "warnings": [],
    }


async def test_what_is_left_out_is_filled(api: ApiClient, settings: Settings) -> None:
    began = datetime.now(UTC)
    answer = await api.post(EVENTS, {"type": "order.created", "data": None, "subject": None})
    event = _read((await _queued(settings))[0])
    assert (event.data, event.tenant, event.source, event.subject) == (b"null", "default", "unknown", None)
    assert began <= event.time <= datetime.now(UTC)
    assert answer["external_id"] == event.external_id
    other = await api.post(EVENTS, {"type": "order.created", "data": None})
    assert other["external_id"] != answer["external_id"]


async def test_the_callers_time_and_traceparent_travel_with_the_event(api: ApiClient, settings: Settings) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = {"type": "a", "data": 1, "time": "2026-01-31T12:00:00.5+01:00"}
    await api.call("POST", EVENTS, body, headers={"traceparent": parent})
    await api.call("POST", EVENTS, body, headers={"traceparent": "nonsense"})
    first, second = (_read(received) for received in await _queued(settings, 2))
    assert first.time == datetime(2026, 1, 31, 11, 0, 0, 500_000, tzinfo=UTC)
    assert (first.traceparent, second.traceparent) == (parent, None)


async def test_a_bad_event_is_refused_with_each_field_named_and_not_published(api: ApiClient, store: Store) -> None:
    cases: list[tuple[bytes, set[str]]] = [
        (b"{}", {"type", "data"}),
        (b'{"data":1}', {"type"}),
        (b'{"type":"a"}', {"data"}),
        (b'{"type":"a b","data":1}', {"type"}),
        (b'{"type":null,"data":1}', {"type"}),
        (b'{"type":7,"data":1}', {"type"}),
        (
            b'{"type":"a","data":1,"tenant":"x y","source":"","id":"","subject":""}',
            {"tenant", "source", "id", "subject"},
        ),
        (b'{"type":"a","data":1,"id":"\\u0000"}', {"id"}),
        (b'{"type":"a","data":1,"source":["s"]}', {"source"}),
        (b'{"type":"a","data":1,"time":"yesterday"}', {"time"}),
        (b'{"type":"a","data":1,"time":"2026-01-31T12:00:00"}', {"time"}),
        (b'{"type":"a","data":1,"headers":{"Webhook-Id":"1"}}', {"headers"}),
        (b'{"type":"a","data":1,"headers":{"Authorization":"1"}}', {"headers"}),
        (b'{"type":"a","data":1,"headers":"X-A: 1"}', {"headers"}),
        (b'{"type":"a","data":1,"colour":"red"}', {"colour"}),
        (b'{"type":"a","data":1,"\\u0000":1}', {"\\x00"}),
        (b"[]", {"body"}),
        (b'"text"', {"body"}),
    ]
    for body, fields in cases:
        answer = await api.call("POST", EVENTS, body)
        assert (answer.status, answer.code) == (400, "validation_failed")
        assert answer.fields.keys() == fields
        async with store.connection() as conn:
            assert await conn.fetchval("SELECT count(*) FROM queue_messages") == 0


async def test_what_is_not_json_is_told_so(api: ApiClient) -> None:
    cases: list[bytes] = [
        b"",
        b"not json",
        b'{"type":"a","data":}',
        b'{"type":"a","data":NaN}',
        b'{"type":"a","data":"\xff"}',
        b'{"type":"a","data":"\\ud800"}',
        b'{"type":"a\\ud800","data":1}',
        b'{"type":"a","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'\xef\xbb\xbf{"type":"a","data":1}',
    ]
    for body in cases:
        answer = await api.call("POST", EVENTS, body)
        assert (answer.status, answer.code) == (400, "invalid_json")


async def test_data_up_to_the_limit_is_taken_and_one_byte_more_is_413(store: Store, database_url: str) -> None:
    settings = api_settings(database_url, max_event_bytes=1000)
    async with running_api(settings, store) as api:
        data = b'"' + b"x" * 998 + b'"'
        taken = await api.call("POST", EVENTS, b'{"type":"a","data":%b}' % data)
        assert taken.status == 202
        refused = await api.call("POST", EVENTS, b'{"type":"a","data":%b}' % (data[:-1] + b'x"'))
        assert (refused.status, refused.code, list(refused.fields)) == (413, "payload_too_large", ["data"])
    assert len(_read((await _queued(settings))[0]).data) == 1000


async def _counted(api: ApiClient) -> tuple[float, float]:
    """How many duplicates and conflicts the API has counted."""
    lines = (await api.call("GET", "/metrics")).raw.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("hookhare_"))
    return (
        float(values.get("hookhare_events_duplicate_total", 0)),
        float(values.get("hookhare_events_conflict_total", 0)),
    )


async def _admit(store: Store, received: Received) -> str:
    """What a dispatcher does with an event."""
    event = _read(received)
    async with store.transaction() as conn:
        key = await rows.add_event(
            conn,
            at=datetime.fromtimestamp((event.accepted_ms or 0) / 1000, UTC),
            tenant=event.tenant,
            source=event.source,
            external_id=event.external_id,
            type=event.type,
            data=event.data,
            digest=event.digest,
        )
        await conn.execute("UPDATE events SET time = $2 WHERE id = $1", key, event.time)
    return public_id(EVENT, key)


async def test_an_event_with_a_known_id_that_says_the_same_is_answered_with_the_first_one(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    body = {"type": "a", "data": {"n": 1}, "id": "4711", "source": "shop"}
    first = await api.post(EVENTS, body)
    assert await _admit(store, (await _queued(settings))[0]) == first["id"]
    for time in ({}, {"time": "2026-01-31T12:00:00Z"}):
        assert await api.post(EVENTS, body | time) == first | {"duplicate": True}
    assert await _counted(api) == (2, 0)
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT count(*) FROM queue_messages") == 0


async def test_an_event_with_a_known_id_that_says_something_else_is_a_conflict_that_names_id(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    body = {"type": "a", "data": {"n": 1}, "id": "4711", "source": "shop"}
    first = await api.post(EVENTS, body)
    await _admit(store, (await _queued(settings))[0])
    for change in ({"data": {"n": 2}}, {"type": "b"}, {"subject": "s"}):
        answer = await api.call("POST", EVENTS, body | change)
        assert (answer.status, answer.code, list(answer.fields)) == (409, "conflict", ["id"])
        assert first["id"] in answer.fields["id"]
    assert await _counted(api) == (0, 3)
    for change in ({"id": "4712"}, {"source": "other"}, {"tenant": "acme"}):
        assert (await api.post(EVENTS, body | change))["duplicate"] is False


async def test_a_duplicate_of_an_event_past_its_retention_is_answered_all_the_same(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    body = {"type": "a", "data": {"n": 1}, "id": "4711", "time": "2026-01-31T12:00:00Z"}
    first = await api.post(EVENTS, body)
    await _admit(store, (await _queued(settings))[0])
    async with store.transaction() as conn:
        await conn.execute("DELETE FROM events")
    assert await api.post(EVENTS, body) == first | {"duplicate": True}


async def test_past_the_dedupe_window_an_id_is_new_again(api: ApiClient, store: Store, settings: Settings) -> None:
    body = {"type": "a", "data": {"n": 1}, "id": "4711"}
    await api.post(EVENTS, body)
    await _admit(store, (await _queued(settings))[0])
    async with store.transaction() as conn:
        await conn.execute("UPDATE event_keys SET created_at = created_at - make_interval(days => 8)")
    assert (await api.post(EVENTS, body | {"data": 2}))["duplicate"] is False


async def test_an_event_is_shown_with_its_data_byte_for_byte(api: ApiClient, store: Store) -> None:
    at = datetime.now(UTC).replace(microsecond=3000)
    async with store.transaction() as conn:
        key = await rows.add_event(conn, at=at, tenant="acme", source="shop", external_id="1", type="a.b", data=DATA)
    answer = await api.call("GET", f"{EVENTS}/{public_id(EVENT, key)}")
    assert answer.status == 200
    assert b'"data":' + DATA in answer.raw
    body = answer.body
    assert (body["id"], body["external_id"], body["tenant"]) == (public_id(EVENT, key), "1", "acme")
    assert (body["source"], body["type"], body["subject"]) == ("shop", "a.b", None)
    assert datetime.fromisoformat(body["accepted_at"]) == at
    listed = await api.call("GET", EVENTS)
    assert b'"data":' + DATA in listed.raw


async def test_events_are_listed_newest_first_paged_and_filtered(api: ApiClient, store: Store) -> None:
    now = datetime.now(UTC)
    async with store.transaction() as conn:
        keys = [
            await rows.add_event(
                conn, at=now - timedelta(minutes=n), tenant=f"t{n}", source=f"s{n}", external_id=f"é{n}", type=f"a.b{n}"
            )
            for n in range(4)
        ]
    ids = [public_id(EVENT, key) for key in keys]
    first = await api.get(EVENTS, limit=3)
    second = await api.get(EVENTS, limit=3, cursor=first["next_cursor"])
    assert [one["id"] for one in first["data"] + second["data"]] == ids
    for query in (
        {"tenant": "t2"},
        {"source": "s2"},
        {"external_id": "é2"},
        {"type": "a.b2"},
        {
            "created_after": (now - timedelta(minutes=2, seconds=9)).isoformat(),
            "created_before": (now - timedelta(minutes=1, seconds=9)).isoformat(),
        },
    ):
        assert [one["id"] for one in (await api.get(EVENTS, **query))["data"]] == [ids[2]], query


async def test_a_bad_filter_is_refused_with_the_field_named(api: ApiClient) -> None:
    cases: list[str] = ["source", "external_id", "type", "tenant"]
    for field in cases:
        query: dict[str, Any] = {field: "a\x00"}
        answer = await api.call("GET", EVENTS, **query)
        assert (answer.status, list(answer.fields)) == (400, [field])


async def test_an_event_that_is_not_there_is_404_and_what_is_no_id_names_the_field(api: ApiClient) -> None:
    missing = await api.call("GET", f"{EVENTS}/{public_id(EVENT, event_key(1, 't', 's', 'i'))}")
    assert (missing.status, missing.code) == (404, "not_found")
    assert "may not have been admitted yet, or was dropped as a duplicate" in missing.body["error"]["message"]
    answer = await api.call("GET", f"{EVENTS}/sub_01h455vb4pex5vsknk084sn02q")
    assert (answer.status, list(answer.fields)) == (400, ["event_id"])


async def test_many_publishes_at_once_are_all_stored(api: ApiClient, settings: Settings) -> None:
    bodies: list[dict[str, Any]] = [{"type": "a", "data": {"n": n}} for n in range(100)]
    answers = await asyncio.gather(*(api.post(EVENTS, body) for body in bodies))
    assert len({answer["id"] for answer in answers}) == 100
    stored = {_read(received).data for received in await _queued(settings, 100)}
    assert stored == {orjson.dumps(body["data"]) for body in bodies}


async def test_a_publish_is_a_span_in_the_callers_trace_and_the_event_goes_on_from_it(
    settings: Settings, store: Store
) -> None:
    exporter = InMemorySpanExporter()
    async with store.transaction() as conn:
        key, _ = await api_keys.create(conn, "test")
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with open_telemetry(settings, "test", exporter=exporter) as telemetry:
        async with open_broker(settings) as broker, open_early_check(settings) as early_check:
            vault = Vault.from_settings(settings)
            app = make_app(
                settings=settings, store=store, broker=broker, vault=vault, early_check=early_check, telemetry=telemetry
            )
            async with TestClient(TestServer(app)) as client:
                headers = {"X-API-Key": key, "traceparent": f"00-{trace_id}-{parent_id}-01"}
                response = await client.post(EVENTS, json={"type": "a", "data": 1}, headers=headers)
                assert response.status == 202
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind) == ("publish hookhare.events", SpanKind.PRODUCER)
    assert span.attributes is not None
    assert span.attributes["messaging.system"] == "postgresql"
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == parent_id
    assert span.context is not None
    event = _read((await _queued(settings))[0])
    assert event.traceparent == f"00-{trace_id}-{span.context.span_id:016x}-01"
