"""Rate limits of keys over all processes, and how often keys were used."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
import structlog
from aiohttp import web
from uuid_utils.compat import uuid7

from consumer_api import uses
from infra.settings import Settings
from infra.store import allowances, api_keys
from infra.store.store import Store, open_store
from schemas.ids import API_KEY, parse_id
from tests.support.api import Answer, ApiClient, api_settings, running_api
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually

LIMIT = 40  # of which a process takes 2 at a time


@pytest.fixture(autouse=True)
def one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not end amid a test."""
    monkeypatch.setattr(allowances, "WINDOW_S", 2_000_000_000)


@pytest.fixture
async def other(settings: Settings, store: Store) -> AsyncIterator[ApiClient]:
    """A second process's worth of API, over the same database."""
    async with running_api(settings, store) as client:
        yield client


async def limited(api: ApiClient, requests_per_min: int = LIMIT) -> ApiClient:
    return await api.of_tenant("acme", "events:read", rate_limit={"requests_per_min": requests_per_min})


async def ask(client: ApiClient, times: int = 1) -> list[Answer]:
    return await asyncio.gather(*(client.call("GET", "/v1/events") for _ in range(times)))


def standing(answer: Answer) -> tuple[int, int]:
    return int(answer.headers["X-RateLimit-Limit"]), int(answer.headers["X-RateLimit-Remaining"])


async def test_every_answer_to_a_key_says_how_it_stands(api: ApiClient) -> None:
    client = await limited(api)
    answers = [
        await client.call("GET", "/v1/events"),
        await client.call("GET", "/v1/events/nonsense"),
        await client.call("GET", "/v1/keys"),
        await client.call("GET", "/v1/nothing"),
        await client.call("PUT", "/v1/events"),
        await client.call("HEAD", "/v1/events"),
        await client.call("GET", "/v1/events", format="csv"),  # streamed
    ]
    assert [answer.status for answer in answers] == [200, 400, 403, 404, 405, 200, 200]
    assert [standing(answer) for answer in answers] == [(LIMIT, LIMIT - made) for made in range(1, 8)]
    assert all(answer.headers["X-Request-Id"] for answer in answers)
    assert all(int(answer.headers["X-RateLimit-Reset"]) > 0 for answer in answers)
    unknown = await client.call("GET", "/v1/events", key="")
    assert not any(name.startswith("X-RateLimit") for name in unknown.headers)


async def test_a_key_past_its_limit_is_429_and_told_when_to_come_back(api: ApiClient) -> None:
    client = await limited(api)
    answers = await ask(client, LIMIT + 10)
    assert Counter(answer.status for answer in answers) == {200: LIMIT, 429: 10}
    (refused,) = await ask(client)
    assert refused.code == "rate_limited"
    assert standing(refused) == (LIMIT, 0)
    assert refused.headers["Retry-After"] == refused.headers["X-RateLimit-Reset"]
    assert (await api.call("GET", "/v1/events")).status == 200  # another key has its own


async def test_the_limit_is_the_installations_unless_the_key_has_its_own(database_url: str, store: Store) -> None:
    async with running_api(api_settings(database_url, key_requests_per_min=7), store) as api:
        (answer,) = await ask(api)
        assert standing(answer) == (7, 6)
        (answer,) = await ask(await limited(api))
        assert standing(answer) == (LIMIT, LIMIT - 1)


async def test_two_processes_never_exceed_a_limit_and_fall_short_by_what_the_other_holds_at_most(
    api: ApiClient, other: ApiClient
) -> None:
    client = await limited(api)
    through_other = ApiClient(other.session, other.url, client.key)
    mine, others = await asyncio.gather(ask(client, LIMIT), ask(through_other, LIMIT))
    assert Counter(answer.status for answer in (*mine, *others)) == {200: LIMIT, 429: LIMIT}

    second = await limited(api)
    (first,) = await ask(ApiClient(other.session, other.url, second.key))  # and holds one more, unused
    assert first.status == 200
    answered = sum(answer.status == 200 for answer in await ask(second, LIMIT))
    assert LIMIT - 1 - LIMIT // 20 <= answered == LIMIT - 2


async def test_one_request_in_many_waits_for_a_statement(api: ApiClient, store: Store) -> None:
    client = await limited(api, 1000)
    await ask(client, 50)
    async with store.connection() as conn:
        rows = await conn.fetch("SELECT taken, granted FROM api_key_windows WHERE taken < 1000")
    assert [tuple(row) for row in rows] == [(50, 50)]  # one statement for all of them, also when they come at once


async def test_a_new_window_begins_anew(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowances, "WINDOW_S", 1)
    client = await limited(api, 1)

    async def refused() -> bool:
        return (await ask(client))[0].status == 429

    async def answered() -> bool:
        return (await ask(client))[0].status == 200

    await eventually(refused)
    await eventually(answered)


async def test_a_changed_limit_holds_for_the_next_request(api: ApiClient) -> None:
    client = await limited(api, 5)
    assert Counter(answer.status for answer in await ask(client, 6)) == {200: 5, 429: 1}
    key_id = (await api.get("/v1/keys", tenant="acme"))["data"][0]["id"]
    await api.patch(f"/v1/keys/{key_id}", {"rate_limit": {"requests_per_min": 8}})
    assert Counter(answer.status for answer in await ask(client, 6)) == {200: 3, 429: 3}
    await api.patch(f"/v1/keys/{key_id}", {"rate_limit": {"requests_per_min": 4}})
    (refused,) = await ask(client)
    assert (refused.status, standing(refused)) == (429, (4, 0))


async def test_a_clock_that_was_set_back_does_not_keep_a_key_out(store: Store) -> None:
    key_id = parse_id(API_KEY, "key_01h455vb4pex5vsknk084sn02q")
    async with store.connection() as conn:
        insert = "INSERT INTO api_key_windows VALUES ($1, $2, 5, 5)"
        await conn.execute(insert, key_id, 1000)
        taken = await allowances.take(conn, key_id, 1, limit=5)
        assert (taken.granted, taken.rest) == (1, 4)


async def test_a_database_that_hangs_or_is_gone_is_503_and_not_a_wait(
    postgres: Postgres, database_url: str, store: Store
) -> None:
    database = await database_name(store)
    async with Proxy(("127.0.0.1", postgres.port)) as proxy:
        settings = api_settings(postgres.tcp_dsn(database, port=proxy.port), database_timeout_s=0.5)
        async with running_api(settings, store) as api:
            client = await limited(api, 20)  # one at a time: each waits for the store
            assert (await ask(client))[0].status == 200
            proxy.stall()
            began_s = monotonic()
            answers = await ask(client, 15)  # more than there are connections
            assert {(answer.status, answer.code) for answer in answers} == {(503, "store_unavailable")}
            assert monotonic() - began_s < 5
            proxy.resume()
            proxy.cut()

            async def well() -> bool:
                return (await ask(client))[0].status == 200

            await eventually(well)
            proxy.refuse()
            proxy.cut()
            assert (await ask(client))[0].code == "store_unavailable"
            proxy.accept()


async def database_name(store: Store) -> str:
    async with store.connection() as conn:
        return str(await conn.fetchval("SELECT current_database()"))


async def used(store: Store) -> tuple[Any, ...]:
    """Of a tenant's key: how often it was used, whether it is known when, and the row's version."""
    async with store.connection() as conn:
        statement = "SELECT uses, last_used_at IS NOT NULL, xmin::text FROM api_keys WHERE tenant IS NOT NULL"
        (row,) = await conn.fetch(statement)
        return tuple(row)


async def test_uses_are_counted_without_a_write_for_each_request_and_written_at_the_stop(
    settings: Settings, store: Store
) -> None:
    async with running_api(settings, store) as api:
        client = await limited(api)
        before = await used(store)
        await ask(client, LIMIT + 5)  # those that are refused too
        assert await used(store) == before
        assert before[:2] == (0, False)
    assert (await used(store))[:2] == (LIMIT + 5, True)


async def test_uses_are_written_every_few_seconds(
    settings: Settings, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uses, "PERIOD_S", 0.05)
    async with running_api(settings, store) as api:
        client = await limited(api)
        await ask(client, 3)

        async def shown() -> bool:
            key = (await api.get("/v1/keys", tenant="acme"))["data"][0]
            return bool(key["use_count"] == 3 and key["last_used_at"] is not None)

        await eventually(shown)


async def test_uses_are_kept_while_the_database_is_away(
    store: Store, monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    monkeypatch.setattr(uses, "PERIOD_S", 0.05)
    database = await database_name(store)
    async with store.transaction() as conn:
        _, row = await api_keys.create(conn, "x", tenant="acme")
    async with Proxy(("127.0.0.1", postgres.port)) as proxy:
        settings = api_settings(postgres.tcp_dsn(database, port=proxy.port), database_timeout_s=0.5)
        async with open_store(settings) as reached:
            counting = uses.Uses(reached)
            proxy.refuse()
            proxy.cut()
            writing = counting.written(web.Application())
            with structlog.testing.capture_logs() as logs:
                await anext(writing)
                counting.count(row.id, datetime.now(UTC))

                async def failed() -> bool:
                    return any(line["event"] == "api.uses_not_written" for line in logs)

                await eventually(failed)
            counting.count(row.id, datetime.now(UTC))
            proxy.accept()

            async def both() -> bool:
                return bool((await used(store))[0] == 2)

            await eventually(both)
            with pytest.raises(StopAsyncIteration):
                await anext(writing)


async def test_a_stop_does_not_wait_for_a_database_that_hangs(
    store: Store, monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    monkeypatch.setattr(uses, "LAST_WRITE_S", 0.2)
    database = await database_name(store)
    async with (
        Proxy(("127.0.0.1", postgres.port)) as proxy,
        open_store(api_settings(postgres.tcp_dsn(database, port=proxy.port))) as reached,
    ):
        counting = uses.Uses(reached)
        writing = counting.written(web.Application())
        await anext(writing)
        counting.count(uuid7(), datetime.now(UTC))
        proxy.stall()
        began_s = monotonic()
        with pytest.raises(StopAsyncIteration):
            await anext(writing)
        assert monotonic() - began_s < 5
        proxy.resume()


async def test_what_two_processes_count_is_added(settings: Settings, store: Store) -> None:
    async with running_api(settings, store) as one, running_api(settings, store) as other:
        client = await limited(one)
        await asyncio.gather(ask(client, 4), ask(ApiClient(other.session, other.url, client.key), 5))
    assert (await used(store))[0] == 9
