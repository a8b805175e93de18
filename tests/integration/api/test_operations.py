"""`/healthz`, `/readyz`, `/metrics`; and how the API starts, or says why it does not."""

import asyncio
import socket

import asyncpg
import pytest

from consumer_api.bootstrap import open_api
from infra.settings import Settings, read_settings
from infra.store import api_keys
from infra.store.store import Store
from schemas.errors import ConfigurationError, SchemaMismatch, StoreUnavailable
from tests.support.api import ApiClient, api_settings, client_of
from tests.support.postgres import Postgres
from tests.support.waiting import eventually


async def test_healthz_answers_as_long_as_the_process_does(api: ApiClient) -> None:
    assert await api.get("/healthz") == {"status": "ok"}


async def test_readyz_goes_on_over_a_newer_schema(api: ApiClient, store: Store) -> None:
    """Amid an upgrade the old processes still run. `tests/fault/test_schema_changes.py` has a real migration."""
    async with store.transaction() as conn:
        await conn.execute("UPDATE alembic_version SET version_num = '9999'")
    assert await api.get("/readyz") == {"broker": "ok", "store": "ok"}


async def test_readyz_asks_the_broker_and_the_store(api: ApiClient) -> None:
    assert await api.get("/readyz") == {"broker": "ok", "store": "ok"}


async def test_readyz_notices_a_schema_that_is_older_than_the_code(api: ApiClient, store: Store) -> None:
    async with store.transaction() as conn:
        await conn.execute("UPDATE alembic_version SET version_num = '0000'")
    answer = await api.call("GET", "/readyz")
    assert (answer.status, answer.body["store"]) == (503, "SchemaMismatch")


async def test_readyz_says_which_part_is_away_and_recovers(own_postgres: Postgres, rabbit_url: str) -> None:
    database = own_postgres.dsn(await own_postgres.create_database())
    settings = api_settings(database, broker_url=rabbit_url, database_timeout_s=2)
    async with open_api(settings) as running, client_of(f"http://{running.host}:{running.port}", "") as api:
        assert (await api.get("/readyz")) == {"broker": "ok", "store": "ok"}
        await asyncio.to_thread(own_postgres.kill)
        answer = await api.call("GET", "/readyz")
        assert (answer.status, answer.body) == (503, {"broker": "ok", "store": "StoreUnavailable"})
        await asyncio.to_thread(own_postgres.start)
        await eventually(lambda: _is_ready(api), deadline_s=20)


async def _is_ready(api: ApiClient) -> bool:
    return (await api.call("GET", "/readyz")).status == 200


async def test_readyz_notices_a_broker_that_is_away(api: ApiClient, database_url: str) -> None:
    """Over the embedded broker: its queue's table is gone."""
    conn = await asyncpg.connect(database_url)
    try:
        await conn.execute("ALTER TABLE queue_messages RENAME TO elsewhere")
        answer = await api.call("GET", "/readyz")
    finally:
        await conn.close()
    assert answer.status == 503
    assert answer.body["broker"] != "ok"
    assert answer.body["store"] == "ok"


async def test_metrics_are_prometheus_text(api: ApiClient) -> None:
    answer = await api.call("GET", "/metrics", key="")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"# TYPE" in answer.raw


async def test_without_an_encryption_key_the_api_does_not_start(database_url: str) -> None:
    with pytest.raises(ConfigurationError, match="HOOKHARE_ENCRYPTION_KEYS"):
        await _open(api_settings(database_url, encryption_keys=None))


async def test_without_a_database_url_the_api_does_not_start(database_url: str) -> None:
    keys = api_settings(database_url).encryption_keys
    with pytest.raises(ConfigurationError, match="HOOKHARE_DATABASE_URL"):
        await _open(read_settings(encryption_keys=keys))


async def test_over_a_database_without_our_schema_the_api_does_not_start(empty_database_url: str) -> None:
    with pytest.raises(SchemaMismatch, match="hookhare migrate"):
        await _open(api_settings(empty_database_url))


async def test_without_a_database_the_api_does_not_start(postgres: Postgres) -> None:
    with pytest.raises(StoreUnavailable):
        await _open(api_settings(postgres.tcp_dsn(port=_free_port()), database_timeout_s=2))


async def test_on_a_port_that_is_taken_the_api_does_not_start(database_url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="HOOKHARE_API_PORT"):
            await _open(api_settings(database_url, api_port=taken.getsockname()[1]))


async def test_stopping_lets_a_request_under_way_finish(store: Store, database_url: str) -> None:
    async with store.transaction() as conn:
        key, _ = await api_keys.create(conn, "test")
    serving, stop = asyncio.Event(), asyncio.Event()
    urls: list[str] = []

    async def serve() -> None:
        async with open_api(api_settings(database_url)) as running:
            urls.append(f"http://{running.host}:{running.port}")
            serving.set()
            await stop.wait()

    server = asyncio.create_task(serve())
    await serving.wait()
    async with client_of(urls[0], key) as api:
        async with store.transaction() as conn:
            await conn.execute("LOCK TABLE subscriptions IN ACCESS EXCLUSIVE MODE")
            asked = asyncio.create_task(api.get("/v1/subscriptions"))
            await _until_waiting(store)
            stop.set()
            done, _ = await asyncio.wait([server], timeout=0.3)
            assert not done
        assert (await asked)["data"] == []
    await server


async def _until_waiting(store: Store) -> None:
    """Until somebody waits for a lock."""

    async def waits() -> bool:
        async with store.connection() as conn:
            return bool(await conn.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await eventually(waits)


async def _open(settings: Settings) -> None:
    async with open_api(settings):
        pass


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
