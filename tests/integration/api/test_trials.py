"""`POST /v1/subscriptions/{id}/test` waits for the attempt, and not for what will not come."""

import asyncio
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import asyncpg
import pytest

from consumer_api.bootstrap import open_api
from infra.settings import Settings
from infra.store import history
from infra.store.store import Store
from schemas.errors import StoreUnavailable
from tests.support import rows
from tests.support.api import Answer, ApiClient, client_of
from tests.support.waiting import eventually

SUBSCRIPTIONS = "/v1/subscriptions"


@pytest.fixture
async def path(api: ApiClient) -> str:
    body = {"url": "https://127.0.0.1/hook", "event_types": ["order.#"]}
    return f"{SUBSCRIPTIONS}/{(await api.post(SUBSCRIPTIONS, body, status=201))['id']}/test"


async def _waiting(store: Store, api: ApiClient, path: str, **query: Any) -> asyncio.Task[Answer]:
    """A call that has stored its delivery."""
    call = asyncio.create_task(api.call("POST", path, **query))

    async def stored() -> bool:
        async with store.connection() as conn:
            return bool(await conn.fetchval("SELECT count(*) FROM deliveries"))

    await eventually(stored)
    return call


async def _settle(conn: asyncpg.Connection, status: str, attempts: int) -> None:
    """What a dispatcher does with the one delivery."""
    key = await conn.fetchval("UPDATE deliveries SET status = $1, attempts = $2 RETURNING id", status, attempts)
    for number in range(attempts):
        await rows.add_attempt(conn, key, number=number + 1, outcome=status)


@pytest.mark.parametrize(("status", "attempts"), [("delivered", 1), ("retrying", 1), ("canceled", 0)])
async def test_it_answers_200_once_there_is_an_attempt_or_will_be_none(
    api: ApiClient, store: Store, path: str, status: str, attempts: int
) -> None:
    call = await _waiting(store, api, path, wait_s=15)
    assert not call.done()
    async with store.transaction() as conn:
        await _settle(conn, status, attempts)
    answer = await call
    assert (answer.status, answer.body["status"]) == (200, status)
    assert (answer.body["attempt"] or {}).get("number") == (1 if attempts else None)


async def test_a_stop_answers_those_who_wait(api: ApiClient, store: Store, path: str, settings: Settings) -> None:
    began = perf_counter()
    async with AsyncExitStack() as stopping:
        running = await stopping.enter_async_context(open_api(settings))
        async with client_of(f"http://{running.host}:{running.port}", api.key) as client:
            call = await _waiting(store, client, path, wait_s=15)
            await stopping.aclose()
            assert (await call).status == 202
    assert perf_counter() - began < 8


async def test_a_database_that_goes_away_meanwhile_does_not_have_the_test_sent_again(
    api: ApiClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object, **__: object) -> list[object]:
        raise StoreUnavailable("away")

    monkeypatch.setattr(history, "attempts_of", away)
    answer = await api.call("POST", path)
    assert (answer.status, answer.body["attempt"]) == (202, None)
