"""Lists whole, as CSV, NDJSON and XML: the same rows as by pages, without secrets, and bounded in every way."""

import asyncio
import csv
import io
import json
import socket
import tracemalloc
from datetime import UTC, datetime
from typing import Any
from uuid import UUID
from xml.etree import ElementTree

import aiohttp
import asyncpg
import pytest
from uuid_utils.compat import uuid7
from yarl import URL

from consumer_api import exporting
from consumer_api.app import all_routes
from consumer_api.queries import ListQuery
from infra.store import api_keys, history
from infra.store.history import EventRow
from infra.store.query import Page
from infra.store.store import Store
from schemas.events import DEFAULT_TENANT
from schemas.ids import DELIVERY, public_id
from schemas.scopes import ALL_SCOPES
from tests.support import rows
from tests.support.api import ApiClient
from tests.support.waiting import eventually

OWNED = ["subscriptions", "events", "deliveries", "attempts", "dead-letters", "replays", "audit-log"]
LISTS = [*OWNED, "keys", "event-types", "event-types/a/versions"]
DELIVERIES = "/v1/deliveries"

_BIG_EVENTS = """
INSERT INTO events (id, tenant, source, external_id, type, time, data)
SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008'
        || lpad(to_hex(number), 15, '0'))::uuid,
       'default', 'tests', number::text, 'order.created', now(), convert_to('"' || repeat('x', 100000) || '"', 'UTF8')
FROM generate_series(1, 200) AS number
"""


_IN_TRANSACTION = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'
"""


async def _read_all(connected: socket.socket) -> bytes:
    parts = []
    while part := await asyncio.get_running_loop().sock_recv(connected, 1_000_000):
        parts.append(part)
    return b"".join(parts)


async def _fill(store: Store, api: ApiClient) -> None:
    """Something in each list."""
    made = await api.post(
        "/v1/subscriptions",
        {
            "url": "https://example.com/hook",
            "event_types": ["a"],
            "secret": "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=",
            "headers": {"X-Token": "hush-hush"},
            "auth": {"type": "bearer", "token": "token-hush"},
        },
        status=201,
    )
    assert made["secret"]
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        for _ in range(3):
            key = await rows.add_delivery(conn, subscription, "dead")
            await rows.add_attempt(conn, key, response_body=b'=cmd|"x" \x00\xff,\r\nend')
    for number in range(2):
        await api.post("/v1/keys", {"name": str(number), "tenant": "default", "scopes": ["events:read"]}, status=201)
        await api.post("/v1/event-types", {"name": "ab"[number], "schema": {"type": "object"}}, status=201)
    await api.post("/v1/event-types/a/versions", {"schema": True}, status=201)
    await api.post("/v1/replays", {"tenant": "default"})
    await api.post("/v1/replays", {"event_type": "order.created"})


def test_each_list_is_one_of_these() -> None:
    lists = {
        route.path.replace("{event_type}", "a") for route in all_routes() if issubclass(route.query or int, ListQuery)
    }
    assert lists == {f"/v1/{path}" for path in LISTS}


@pytest.mark.parametrize("path", LISTS)
async def test_each_list_is_exported_with_what_its_pages_show(api: ApiClient, store: Store, path: str) -> None:
    await _fill(store, api)
    name, path = path.replace("event-types/a/versions", "event-type-versions"), f"/v1/{path}"
    shown = (await api.get(path))["data"]
    assert len(shown) >= 2
    ndjson = await api.call("GET", path, format="ndjson")
    assert ndjson.headers["Content-Type"] == "application/x-ndjson; charset=utf-8"
    assert ndjson.headers["Content-Disposition"] == f'attachment; filename="{name}.ndjson"'
    assert ndjson.headers["X-Request-Id"]
    assert [json.loads(line) for line in ndjson.raw.splitlines()] == shown

    answer = await api.call("GET", path, headers={"Accept": "text/csv"})
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    names, *cells = csv.reader(io.StringIO(answer.raw.decode(), newline=""))
    assert names == list(shown[0])
    expected = [[_cell(value) for value in row.values()] for row in shown]
    assert [[_plain(cell.removeprefix("'")) for cell in row] for row in cells] == expected

    answer = await api.call("GET", path, headers={"Accept": "application/xml"})
    root = ElementTree.fromstring(answer.raw)
    assert (root.tag, [field.tag for field in root[0]]) == (name, names)
    found = [[None if field.get("nil") else _plain(field.text or "") for field in item] for item in root]
    for row in shown:
        row.update({field: value.replace("\x00", "\ufffd") for field, value in row.items() if isinstance(value, str)})
    xml = [[None if value is None else _cell(value) for value in row.values()] for row in shown]
    assert found == xml
    for raw in (ndjson.raw, answer.raw):
        assert not any(secret in raw for secret in (b"whsec_", b"hush-hush", b"token-hush"))


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _plain(text: str) -> str:
    """JSON as the other side of a comparison writes it."""
    return json.dumps(json.loads(text), sort_keys=True) if text[:1] in ("{", "[") else text


async def test_an_export_goes_over_pages_in_the_order_of_the_list_and_from_its_cursor(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "MAX_PAGE", 2)
    async with store.transaction() as conn:
        subscription = (await rows.add_subscription(conn)).id
        keys = [await rows.add_delivery(conn, subscription, "held") for _ in range(5)]
        await rows.add_delivery(conn, subscription, "dead")
    expected = [public_id(DELIVERY, key) for key in sorted(keys, reverse=True)]

    async def exported(**query: Any) -> list[str]:
        answer = await api.call("GET", DELIVERIES, format="ndjson", status="held", **query)
        return [json.loads(line)["id"] for line in answer.raw.splitlines()]

    assert await exported() == expected
    page = await api.get(DELIVERIES, status="held", limit=3)
    assert await exported(cursor=page["next_cursor"]) == expected[3:]
    assert (await api.call("HEAD", DELIVERIES, format="csv")).headers["Content-Type"] == "text/csv; charset=utf-8"


async def test_an_export_has_nothing_of_another_tenant(api: ApiClient, store: Store) -> None:
    await _fill(store, api)
    async with store.transaction() as conn:
        own, _ = await api_keys.create(conn, "own", tenant=DEFAULT_TENANT, scopes=ALL_SCOPES)
        strange, _ = await api_keys.create(conn, "strange", tenant="strange", scopes=ALL_SCOPES)
    for name in OWNED:
        assert (await api.call("GET", f"/v1/{name}", key=own, format="ndjson")).raw
        assert (await api.call("GET", f"/v1/{name}", key=strange, format="ndjson")).raw == b""


async def test_a_bad_request_for_an_export_is_refused_with_the_field_named(api: ApiClient) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"format": "pdf"}, "format"),
        ({"format": "csv", "limit": "10"}, "limit"),
    ]
    for query, field in cases:
        answer = await api.call("GET", DELIVERIES, **query)
        assert (answer.status, list(answer.fields)) == (400, [field])
    for accept in ("*/*", "application/json", "text/html,application/xml;q=0.9", "image/png"):
        answer = await api.call("GET", DELIVERIES, headers={"Accept": accept})
        assert answer.body["data"] == []


async def test_no_more_exports_than_there_may_be_are_under_way_and_one_that_is_not_read_is_cut(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "STALLED_S", 0.5)
    monkeypatch.setattr(exporting, "MAX_EXPORTS", 1)
    async with store.connection() as conn:
        await conn.execute(_BIG_EVENTS)
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        url = URL(api.url)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stalled, (url.host, url.port))
        head = f"GET /v1/events?format=csv HTTP/1.1\r\nHost: x\r\nX-API-Key: {api.key}\r\n\r\n"
        await loop.sock_sendall(stalled, head.encode())
        assert (await loop.sock_recv(stalled, 12)) == b"HTTP/1.1 200"
        answer = await api.call("GET", "/v1/events", format="csv")
        assert (answer.status, answer.code) == (503, "overloaded")
        assert answer.headers["Retry-After"] == "5"
        assert (await api.call("GET", "/v1/events", limit=1)).status == 200
        async with store.connection() as conn:
            assert await conn.fetchval(_IN_TRANSACTION) == 0

        async def free() -> bool:
            return (await api.call("GET", "/v1/replays", format="csv")).status == 200

        await eventually(free, deadline_s=10)
        read = await _read_all(stalled)
        assert len(read) < 20_000_000
        assert not read.endswith(b"0\r\n\r\n")  # as a body that is whole does


async def test_an_export_that_cannot_go_on_does_not_look_whole(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "MAX_PAGE", 1)
    async with store.connection() as conn:
        await conn.execute(_BIG_EVENTS)
        async with api.session.get(
            f"{api.url}/v1/events", params={"format": "ndjson"}, headers={"X-API-Key": api.key}
        ) as response:
            assert response.status == 200
            await conn.execute("ALTER TABLE events RENAME TO lost")
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()


async def test_an_export_ends_with_its_key_and_a_tenants_leave_room_for_anothers(
    api: ApiClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "MAX_PAGE", 1)
    monkeypatch.setattr(exporting, "MAX_OF_TENANT", 1)
    async with store.connection() as conn:
        await conn.execute(_BIG_EVENTS)
    own, other = await api.of_tenant(DEFAULT_TENANT), await api.of_tenant("other")
    async with api.session.get(
        f"{api.url}/v1/events", params={"format": "ndjson"}, headers={"X-API-Key": own.key}
    ) as response:
        assert response.status == 200
        refused = await own.call("GET", "/v1/events", format="csv")
        assert (refused.status, refused.code) == (503, "overloaded")
        assert (await other.call("GET", "/v1/events", format="csv")).status == 200
        async with store.connection() as conn:
            await conn.execute("UPDATE api_keys SET revoked_at = now() WHERE tenant = $1", DEFAULT_TENANT)
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_a_page_is_all_that_is_in_memory(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six thousand rows, made up, with 6 MB of data: what an export of them needs does not grow."""
    at, number = datetime.now(UTC), 0

    async def read(conn: asyncpg.Connection, wanted: object, *, after: UUID | None, limit: int) -> Page[EventRow]:
        nonlocal number
        number += limit
        data = b'"' + b"x" * 1000 + b'"'
        row = EventRow(uuid7(), "default", "tests", "1", "order.created", None, at, data, None, at, None)
        return Page([row] * limit, None if number >= 6_000 else row.id)

    monkeypatch.setattr(history, "list_events", read)
    sent_bytes = 0
    tracemalloc.start()
    try:
        async with api.session.get(
            f"{api.url}/v1/events", params={"format": "xml"}, headers={"X-API-Key": api.key}
        ) as response:
            async for part in response.content.iter_any():
                sent_bytes += len(part)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sent_bytes > 6_000_000
    assert peak_bytes < 3_000_000
