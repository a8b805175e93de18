"""When something is away or breaks: what is answered, and what of it nobody is told."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import orjson
import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from uuid_utils.compat import uuid7

from consumer_api import middleware
from consumer_api.app import all_routes, make_app
from consumer_api.caller import id_prefix
from infra.broker.base import Outgoing
from infra.broker.open import open_broker
from infra.crypto import Vault
from infra.early_check import open_early_check
from infra.settings import Settings
from infra.store import api_keys
from infra.store.dead_letters import pack_properties
from infra.store.store import Store
from infra.telemetry import open_telemetry
from schemas.errors import (
    BrokerError,
    BrokerUnavailable,
    PublishRefused,
    PublishTimeout,
    StoreUnavailable,
    Unroutable,
)
from schemas.ids import DEAD_LETTER, public_id
from schemas.messages import Message
from tests.support import rows
from tests.support.strangers import PARAMETER, Ways

ROUTES = [(route.method, re.sub(r"\{\w+\}", "x", route.path)) for route in all_routes() if route.scope is not None]


class _FailingBroker:
    """Says no to every publish; the other answers are a real broker's."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def publish(self, _: Outgoing, *, timeout_s: float) -> None:
        raise self.error

    async def check(self, *, timeout_s: float) -> None:
        raise self.error


async def _client(settings: Settings, store: Any, broker: Any) -> TestClient[web.Request, web.Application]:
    async with open_early_check(settings) as early_check:
        with open_telemetry(settings, "test") as telemetry:
            vault = Vault.from_settings(settings)
            app = make_app(
                settings=settings, store=store, broker=broker, vault=vault, early_check=early_check, telemetry=telemetry
            )
    return TestClient(TestServer(app))


async def _key(store: Store) -> dict[str, str]:
    async with store.transaction() as conn:
        key, _ = await api_keys.create(conn, "test")
    return {"X-API-Key": key}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokerUnavailable("amqp://user:pw@host"), "broker_unavailable"),
        (PublishTimeout("amqp://user:pw@host"), "broker_unavailable"),
        (PublishRefused("amqp://user:pw@host"), "broker_refused"),
        (Unroutable("amqp://user:pw@host"), "broker_refused"),
    ],
)
async def test_an_event_that_the_broker_did_not_confirm_is_503_and_not_202(
    settings: Settings, store: Store, error: BrokerError, code: str
) -> None:
    headers = await _key(store)
    async with await _client(settings, store, _FailingBroker(error)) as client:
        response = await client.post("/v1/events", json={"type": "a", "data": 1, "id": "4711"}, headers=headers)
        text = await response.text()
    assert response.status == 503
    assert "publish it again with the id 4711" in text
    assert f'"code":"{code}"' in text
    assert int(response.headers["Retry-After"]) > 0
    assert "user:pw" not in text


@pytest.mark.parametrize(
    ("error", "code"), [(BrokerUnavailable("away"), "broker_unavailable"), (PublishRefused("no"), "broker_refused")]
)
async def test_a_dead_letter_that_the_broker_does_not_take_stays_open(
    settings: Settings, store: Store, error: BrokerError, code: str
) -> None:
    headers = await _key(store)
    async with store.transaction() as conn:
        letter = await rows.add_message_letter(conn, headers=pack_properties(Message(b"")))
    path = f"/v1/dead-letters/{public_id(DEAD_LETTER, letter)}"
    async with await _client(settings, store, _FailingBroker(error)) as client:
        response = await client.post(f"{path}/replay", headers=headers)
        assert (response.status, (await response.json())["error"]["code"]) == (503, code)
        shown = await (await client.get(path, headers=headers)).json()
    assert shown["state"] == "open"


async def test_a_surprise_is_500_without_its_message_and_logged_under_the_request_id(
    settings: Settings, store: Store
) -> None:
    headers = {**await _key(store), "X-Request-Id": "r-1"}
    broker = _FailingBroker(RuntimeError("internal detail"))
    with structlog.testing.capture_logs() as logs:
        async with await _client(settings, store, broker) as client:
            response = await client.post("/v1/events", json={"type": "a", "data": 1}, headers=headers)
            text = await response.text()
    assert response.status == 500
    assert '"code":"internal"' in text
    assert "internal detail" not in text
    assert "RuntimeError" not in text
    (logged,) = [line for line in logs if line["event"] == "api.unexpected"]
    assert (logged["request_id"], logged["route"]) == ("r-1", "/v1/events")


class _BreakingStore:
    """The store until somebody is let in; then each statement fails in a way that nobody has foreseen."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.broken = False

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        if self.broken:
            raise asyncpg.UndefinedTableError('relation "inner_workings" does not exist: SELECT * FROM inner_workings')
        async with self._store.connection() as conn:
            yield conn

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        async with self.connection() as conn, conn.transaction():
            yield conn


async def test_of_what_breaks_unforeseen_no_route_tells_more_than_the_request_id(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking = _BreakingStore(store)

    def let_in(*_: Any, **__: Any) -> None:
        breaking.broken = True

    monkeypatch.setattr(middleware, "check_scope", let_in)
    headers, broken = await _key(store), 0
    ways = Ways(all_routes())
    with structlog.testing.capture_logs() as logs:
        async with open_broker(settings) as broker, await _client(settings, breaking, broker) as client:
            for route in ways.routes:
                breaking.broken = False
                path = PARAMETER.sub(lambda found: public_id(id_prefix(found[1]) or "x", uuid7()), route.path)
                sent = headers | {"X-Request-Id": f"r-{broken}"}
                body = orjson.dumps(ways.body(route, "acme")) if route.body is not None else None
                response = await client.request(route.method, path, data=body, headers=sent)
                text = await response.text()
                for inward in ("Traceback", "asyncpg", "Undefined", "SELECT", "inner_workings", ".py", "Error("):
                    assert inward not in text + repr(response.headers), (path, inward)
                if response.status == 500:
                    error = orjson.loads(text)["error"]
                    assert (error["code"], error["request_id"]) == ("internal", f"r-{broken}")
                    broken += 1
            breaking.broken = False  # uses of keys are written at the end
    assert broken > 30
    logged = [line["request_id"] for line in logs if line["event"] == "api.unexpected"]
    assert logged == [f"r-{number}" for number in range(broken)]


class _AbsentStore:
    def connection(self) -> Any:
        raise StoreUnavailable("postgresql://user:pw@host")

    transaction = connection

    async def check(self) -> None:
        raise StoreUnavailable("postgresql://user:pw@host")


async def test_without_the_database_every_route_is_503(settings: Settings) -> None:
    broker = _FailingBroker(BrokerUnavailable("no"))
    headers = {"X-API-Key": "hh_" + "A" * 43}
    async with await _client(settings, _AbsentStore(), broker) as client:
        for method, path in ROUTES:
            response = await client.request(method, path, headers=headers)
            text = await response.text()
            assert response.status == 503, path
            assert '"code":"store_unavailable"' in text
            assert "user:pw" not in text
            assert "Retry-After" in response.headers


async def test_each_request_is_one_log_line_without_its_query_body_or_key(settings: Settings, store: Store) -> None:
    headers = {**await _key(store), "X-Request-Id": "r-2"}
    with structlog.testing.capture_logs() as logs:
        async with open_broker(settings) as broker, await _client(settings, store, broker) as client:
            await client.get("/v1/events?tenant=s3cret", headers=headers)
            await client.get("/healthz")
    (line,) = [line for line in logs if line["event"] == "api.request"]
    assert (line["method"], line["route"], line["status"]) == ("GET", "/v1/events", 200)
    assert (line["request_id"], line["key"][:4]) == ("r-2", "key_")
    assert line["duration_ms"] >= 0
    assert "s3cret" not in repr(line)
    assert headers["X-API-Key"] not in repr(logs)
