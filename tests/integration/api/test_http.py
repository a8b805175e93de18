"""What every route has in common: the key, the shape of errors, the request id, the bounds."""

import asyncio
import re
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from consumer_api import reading
from consumer_api.app import all_routes, make_app
from consumer_api.caller import id_prefix
from infra.broker.open import open_broker
from infra.crypto import Vault
from infra.early_check import open_early_check
from infra.settings import Settings
from infra.store import api_keys
from infra.store.store import Store
from infra.telemetry import open_telemetry
from schemas.ids import public_id
from tests.support.api import ApiClient, api_settings, running_api
from tests.support.waiting import eventually

ROUTES = [
    ("POST", "/v1/subscriptions"),
    ("GET", "/v1/subscriptions"),
    ("GET", "/v1/subscriptions/x"),
    ("PATCH", "/v1/subscriptions/x"),
    ("DELETE", "/v1/subscriptions/x"),
    ("POST", "/v1/subscriptions/preview"),
    ("POST", "/v1/subscriptions/x/recover"),
    ("POST", "/v1/subscriptions/x/rotate-secret"),
    ("GET", "/v1/subscriptions/x/stats"),
    ("POST", "/v1/subscriptions/x/expire-secrets"),
    ("GET", "/v1/subscriptions/x/secrets"),
    ("POST", "/v1/subscriptions/x/test"),
    *(("POST", f"/v1/subscriptions/x/{command}") for command in ("pause", "resume", "enable", "disable")),
    ("POST", "/v1/events"),
    ("POST", "/v1/events/batch"),
    ("GET", "/v1/events"),
    ("GET", "/v1/events/x"),
    ("POST", "/v1/events/x/redeliver"),
    ("POST", "/v1/events/x/expunge"),
    ("POST", "/v1/event-types"),
    ("GET", "/v1/event-types"),
    *((method, "/v1/event-types/x") for method in ("GET", "PATCH", "DELETE")),
    *((method, "/v1/event-types/x/versions") for method in ("GET", "POST")),
    ("GET", "/v1/event-types/x/versions/x"),
    ("GET", "/v1/deliveries"),
    ("POST", "/v1/deliveries/retry"),
    ("POST", "/v1/deliveries/cancel"),
    ("GET", "/v1/deliveries/x"),
    ("POST", "/v1/deliveries/x/retry"),
    ("POST", "/v1/deliveries/x/cancel"),
    ("POST", "/v1/deliveries/x/replay"),
    ("GET", "/v1/attempts"),
    ("GET", "/v1/attempts/x"),
    ("GET", "/v1/dead-letters"),
    ("GET", "/v1/dead-letters/x"),
    ("GET", "/v1/dead-letters/x/body"),
    ("POST", "/v1/dead-letters/x/replay"),
    ("POST", "/v1/dead-letters/x/discard"),
    ("POST", "/v1/replays"),
    ("GET", "/v1/replays"),
    ("GET", "/v1/replays/x"),
    ("POST", "/v1/replays/x/cancel"),
    ("POST", "/v1/keys"),
    ("GET", "/v1/keys"),
    ("GET", "/v1/keys/x"),
    ("PATCH", "/v1/keys/x"),
    ("POST", "/v1/keys/x/rotate"),
    ("POST", "/v1/keys/x/revoke"),
    ("GET", "/v1/audit-log"),
    ("GET", "/v1/audit-log/x"),
]


async def test_every_route_but_probes_and_documents_asks_for_a_key(
    api: ApiClient, store: Store, settings: Settings
) -> None:
    async with open_broker(settings) as broker, open_early_check(settings) as early_check:
        with open_telemetry(settings, "test") as telemetry:
            vault = Vault.from_settings(settings)
            app = make_app(
                settings=settings, store=store, broker=broker, vault=vault, early_check=early_check, telemetry=telemetry
            )
    known = {
        (route.method, re.sub(r"\{\w+\}", "x", route.resource.canonical))
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    probes = {("GET", path) for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/docs")}
    assert known == {*ROUTES, *probes, ("GET", "/docs/x")}
    for method, path in ROUTES:
        answer = await api.call(method, path, key="")
        assert (answer.status, answer.code) == (401, "unauthorized"), (method, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    for method, path in probes:
        assert (await api.call(method, path, key="")).status == 200, path


async def test_a_key_that_is_wrong_is_401(api: ApiClient) -> None:
    cases: list[dict[str, str]] = [
        {"Authorization": "Bearer hh_" + "A" * 43},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic aGg6aGg="},
        {"Authorization": "Bearer \xff\xfe"},
        {"X-API-Key": "hh_" + "A" * 43},
        {"X-API-Key": ""},
        {"X-API-Key": "é" * 46},
    ]
    for headers in cases:
        answer = await api.call("GET", "/v1/subscriptions", key="", headers=headers)
        assert (answer.status, answer.code) == (401, "unauthorized")


async def test_a_key_is_taken_as_bearer_token_or_in_its_own_header(api: ApiClient) -> None:
    for headers in (
        {"Authorization": f"Bearer {api.key}"},
        {"Authorization": f"bearer  {api.key}"},
        {"X-API-Key": api.key},
    ):
        assert (await api.call("GET", "/v1/subscriptions", key="", headers=headers)).status == 200


async def test_a_revoked_key_ends_at_once(api: ApiClient, store: Store) -> None:
    assert (await api.call("GET", "/v1/subscriptions")).status == 200
    async with store.transaction() as conn:
        row = await api_keys.find(conn, api.key)
        assert row is not None
        await api_keys.revoke(conn, row.id)
    assert (await api.call("GET", "/v1/subscriptions")).code == "unauthorized"


async def test_an_unknown_route_is_404_and_under_v1_only_for_who_has_a_key(api: ApiClient) -> None:
    for path in ("/v1/nothing", "/v1/subscriptions/", "/v2/events", "/", "/v1"):
        answer = await api.call("GET", path)
        assert (answer.status, answer.code) == (404, "not_found"), path
    assert (await api.call("GET", "/v1/nothing", key="")).code == "unauthorized"
    assert (await api.call("GET", "/", key="")).code == "not_found"


async def test_a_wrong_method_is_405_and_says_which_are_right(api: ApiClient) -> None:
    answer = await api.call("PUT", "/v1/events")
    assert (answer.status, answer.code) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, HEAD, POST"


async def test_errors_have_the_one_shape(api: ApiClient) -> None:
    answer = await api.call("POST", "/v1/events", {"type": "a b"})
    error = answer.body["error"]
    assert answer.body.keys() == {"error"}
    assert error.keys() == {"code", "message", "details", "timestamp", "request_id"}
    assert error["request_id"] == answer.headers["X-Request-Id"]
    assert {tuple(detail) for detail in error["details"]} == {("field", "message")}
    assert abs(datetime.fromisoformat(error["timestamp"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert answer.headers["Content-Type"] == "application/json"


async def test_the_request_id_is_the_callers_when_it_is_fit_for_a_log_and_else_a_new_one(api: ApiClient) -> None:
    for path in ("/v1/subscriptions", "/healthz", "/nothing"):
        given = await api.call("GET", path, headers={"X-Request-Id": "a-B_1.2"})
        assert given.headers["X-Request-Id"] == "a-B_1.2"
    made = set()
    for bad in ("a b", "x" * 129, "é", ""):
        answer = await api.call("GET", "/nothing", headers={"X-Request-Id": bad})
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["X-Request-Id"])
        made.add(answer.body["error"]["request_id"])
    assert len(made) == 4


async def test_a_body_that_is_not_json_is_told_so(api: ApiClient) -> None:
    for path in ("/v1/subscriptions", "/v1/events"):
        for body in (b"not json", b'{"url": "\\ud800"}', b'{"a": \xff}', b"[" * 5000, b""):
            answer = await api.call("POST", path, body)
            assert (answer.status, answer.code) == (400, "invalid_json"), (path, body[:20])


async def test_json_that_is_nested_too_deep_is_told_so_on_every_route_that_reads_a_body(api: ApiClient) -> None:
    """How deep it may be is said; far beyond what any parser's stack takes too."""
    told: dict[str, int] = {}
    for route in all_routes():
        if route.body is None:
            continue
        path = re.sub(r"\{(\w+)\}", lambda found: public_id(id_prefix(found[1]) or "", uuid7()), route.path)
        depths = set()
        for deep in (131, 1025, 50_000):
            for body in (b'{"a":' * deep + b"1" + b"}" * deep, b"[" * deep + b"]" * deep):
                answer = await api.call(route.method, path, body)
                assert (answer.status, answer.code) == (400, "invalid_json"), (path, deep)
                said = re.search(r"nested at most (\d+) deep", answer.body["error"]["message"])
                assert said is not None, (path, deep, answer.raw)
                depths.add(int(said[1]))
        (depth,) = depths
        for deep, code in ((depth + 1, "invalid_json"), (depth, "validation_failed")):
            answer = await api.call(route.method, path, b'{"a":' * deep + b"1" + b"}" * deep)
            assert (answer.status, answer.code) == (400, code), (path, deep)
        told[route.path] = depth
    assert len(told) > 10
    assert told["/v1/subscriptions"] == 64
    assert max(told.values()) <= 130


async def test_json_that_is_no_object_is_told_so(api: ApiClient) -> None:
    for path in ("/v1/subscriptions", "/v1/events", "/v1/replays"):
        for body in (b"[]", b"1", b'"text"', b"null"):
            answer = await api.call("POST", path, body)
            assert (answer.status, answer.code, list(answer.fields)) == (400, "validation_failed", ["body"]), path


async def test_a_body_beyond_its_bound_is_413_also_when_it_comes_in_chunks(api: ApiClient) -> None:
    cases: list[str] = ["/v1/subscriptions", "/v1/events", "/v1/replays"]
    for path in cases:

        async def chunks() -> Any:
            for _ in range(100):
                yield b" " * 65_536

        answer = await api.call("POST", path, b" " * 1_000_000)
        assert (answer.status, answer.code) == (413, "payload_too_large")
        async with api.session.post(f"{api.url}{path}", data=chunks(), headers={"X-API-Key": api.key}) as response:
            assert response.status == 413


async def test_a_compressed_body_is_bounded_by_what_it_holds(api: ApiClient) -> None:
    bomb = zlib.compress(b" " * 50_000_000)
    answer = await api.call("POST", "/v1/events", bomb, headers={"Content-Encoding": "deflate"})
    assert (answer.status, answer.code) == (413, "payload_too_large")
    broken = await api.call("POST", "/v1/events", b"no gzip", headers={"Content-Encoding": "gzip"})
    assert (broken.status, broken.code) == (400, "invalid_request")


async def test_more_requests_than_are_worked_on_at_once_are_503_and_the_probes_are_not(
    database_url: str, store: Store
) -> None:
    reached, let_go = asyncio.Event(), asyncio.Event()

    async def drip() -> Any:
        yield b"{"
        reached.set()
        await let_go.wait()
        yield b"}"

    async with running_api(api_settings(database_url, api_max_requests=1), store) as api:

        async def slow() -> int:
            headers = {"X-API-Key": api.key}
            async with api.session.post(f"{api.url}/v1/events", data=drip(), headers=headers) as response:
                return response.status

        dripping = asyncio.create_task(slow())
        await reached.wait()

        async def refused() -> bool:
            answer = await api.call("GET", "/v1/events")
            return answer.status == 503 and answer.code == "overloaded" and "Retry-After" in answer.headers

        await eventually(refused)  # as soon as the head of the slow one was read
        assert (await api.call("GET", "/healthz")).status == 200
        let_go.set()
        assert await dripping == 400
        assert (await api.call("GET", "/v1/events")).status == 200


async def test_a_body_that_drips_is_408(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BODY_TIMEOUT_S", 0.2)

    async def drip() -> Any:
        while True:
            yield b" "
            await asyncio.sleep(0.02)

    async with api.session.post(f"{api.url}/v1/events", data=drip(), headers={"X-API-Key": api.key}) as response:
        assert response.status == 408
        assert (await response.json())["error"]["code"] == "request_timeout"
