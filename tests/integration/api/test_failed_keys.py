"""Keys that are none: how often an address may send them, whose address that is, and two keys at once."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from structlog.testing import capture_logs

from infra.store.store import Store
from tests.support.api import Answer, ApiClient, api_settings, running_api

WRONG = "hh_" + "A" * 43
MOST = 3


@pytest.fixture
async def api(database_url: str, store: Store) -> AsyncIterator[ApiClient]:
    """One that is behind a proxy, which is the test, and that gives three tries a minute."""
    settings = api_settings(database_url, auth_failures_per_min=MOST, trusted_proxies="127.0.0.0/8")
    async with running_api(settings, store) as client:
        yield client


async def ask(api: ApiClient, key: str, address: str = "198.51.100.1", **headers: str) -> Answer:
    sent = {"X-Forwarded-For": address, **headers}
    return await api.call("GET", "/v1/subscriptions", key=key, headers=sent)


async def exhaust(api: ApiClient, address: str = "198.51.100.1") -> None:
    for _ in range(MOST):
        assert (await ask(api, WRONG, address)).status == 401


async def test_too_many_wrong_keys_from_an_address_are_429_and_told_when_to_try_again(api: ApiClient) -> None:
    await exhaust(api)
    answer = await ask(api, WRONG)
    assert (answer.status, answer.code) == (429, "rate_limited")
    assert 1 <= int(answer.headers["Retry-After"]) <= 20
    assert "WWW-Authenticate" not in answer.headers
    assert (await ask(api, "nonsense")).status == 429
    assert (await ask(api, WRONG, "198.51.100.2")).status == 401


async def test_a_bad_client_does_not_take_the_api_from_those_behind_its_address(api: ApiClient) -> None:
    client = await api.of_tenant("acme", "subscriptions:read")
    assert (await ask(api, client.key, "203.0.113.7")).status == 200  # known, from wherever
    await exhaust(api)
    assert (await ask(api, client.key)).status == 200
    assert (await ask(api, WRONG)).status == 429
    fresh = await api.of_tenant("acme", "subscriptions:read")
    assert (await ask(api, fresh.key)).status == 429  # for the first time: has to wait
    assert (await ask(api, fresh.key, "203.0.113.7")).status == 200


async def test_a_known_key_that_is_revoked_ends_at_once_there_too(api: ApiClient) -> None:
    client = await api.of_tenant("acme", "subscriptions:read")
    assert (await ask(api, client.key)).status == 200
    await exhaust(api)
    key_id = (await api.get("/v1/keys", tenant="acme"))["data"][0]["id"]
    await api.post(f"/v1/keys/{key_id}/revoke", status=200)
    assert (await ask(api, client.key)).status == 401
    assert (await ask(api, client.key)).status == 429


async def test_who_sends_no_key_is_told_so_however_often(api: ApiClient) -> None:
    for _ in range(MOST + 2):
        assert (await ask(api, "")).status == 401
    assert (await ask(api, api.key)).status == 200


async def test_nobody_but_a_trusted_proxy_chooses_an_address(database_url: str, store: Store) -> None:
    async with running_api(api_settings(database_url, auth_failures_per_min=MOST), store) as api:
        for number in range(MOST):
            assert (await ask(api, WRONG, f"198.51.100.{number}")).status == 401
        assert (await ask(api, WRONG, "198.51.100.99")).status == 429


async def test_the_audit_log_and_the_log_have_the_callers_address(api: ApiClient, store: Store) -> None:
    body: dict[str, Any] = {"name": "x", "tenant": "acme", "scopes": ["*"]}
    with capture_logs() as lines:
        await api.call("POST", "/v1/keys", body, headers={"X-Forwarded-For": "192.0.2.1, 198.51.100.9"})
    async with store.connection() as conn:
        assert await conn.fetchval("SELECT address FROM audit_log") == "198.51.100.9"
    assert [line["address"] for line in lines if line["event"] == "api.request"] == ["198.51.100.9"]


async def test_one_key_in_both_headers_is_one_and_two_that_differ_are_refused(api: ApiClient) -> None:
    assert (await ask(api, api.key, **{"X-API-Key": api.key})).status == 200
    answer = await ask(api, api.key, **{"X-API-Key": WRONG})
    assert (answer.status, answer.code) == (400, "invalid_request")
    assert "more than one key" in answer.body["error"]["message"]
    assert WRONG not in answer.raw.decode()
    assert (await ask(api, api.key, **{"X-API-Key": ""})).status == 200


async def test_an_authorization_of_another_kind_is_not_for_us(api: ApiClient) -> None:
    theirs = {"Authorization": "Basic aGg6aGg="}
    assert (await ask(api, "", **theirs, **{"X-API-Key": api.key})).status == 200
    assert (await ask(api, "", **theirs)).status == 401
