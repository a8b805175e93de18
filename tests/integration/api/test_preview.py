"""`POST /v1/subscriptions/preview`: what an event would match, why not, and the request as the dispatcher sends it."""

from typing import Any

import pytest

from infra.store import api_keys
from infra.store.store import Store
from schemas.ids import SUBSCRIPTION, parse_id
from tests.support.api import ApiClient

PREVIEW = "/v1/subscriptions/preview"
EVENT = {"type": "order.created", "data": {"amount": 5}, "source": "shop"}


async def create(api: ApiClient, *event_types: str, **more: Any) -> str:
    wanted = {"url": "https://example.com/hook?a=%62", "event_types": list(event_types) or ["#"]}
    created = await api.post("/v1/subscriptions", wanted | more, status=201)
    return str(created["id"])


async def explained(api: ApiClient, subscription: str, event: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = await api.call("POST", PREVIEW, event or EVENT, subscription_id=subscription)
    assert answer.status == 200, answer.raw
    told: dict[str, Any] = answer.body["subscription"]
    return told


async def test_it_names_what_an_event_would_match_newest_first(api: ApiClient) -> None:
    every = await create(api)
    small = await create(api, "order.*", filter={"data.amount": {"$lt": 10}})
    await create(api, "order.*", filter={"data.amount": {"$gt": 10}})
    await create(api, "invoice.*")
    await create(api, tenant="other")
    paused, disabled = await create(api), await create(api)
    await api.call("POST", f"/v1/subscriptions/{paused}/pause")
    await api.call("POST", f"/v1/subscriptions/{disabled}/disable")
    answer = await api.post(PREVIEW, EVENT, status=200)
    assert [one["subscription_id"] for one in answer["data"]] == [paused, small, every]
    assert (answer["has_more"], answer["next_cursor"], answer["subscription"]) == (False, None, None)


async def test_its_pages_lead_over_all_subscriptions(api: ApiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer_api.preview.LOOKED_AT", 2)
    last, _, first = await create(api), await create(api, "invoice.*"), await create(api)
    page = await api.post(PREVIEW, EVENT, status=200)
    assert ([one["subscription_id"] for one in page["data"]], page["has_more"]) == ([first], True)
    page = (await api.call("POST", PREVIEW, EVENT, cursor=page["next_cursor"])).body
    assert ([one["subscription_id"] for one in page["data"]], page["has_more"]) == ([last], False)


async def test_it_says_why_one_would_not_match(api: ApiClient, store: Store) -> None:
    subscription = await create(api, "invoice.*", filter={"data.amount": {"$gt": 10}, "data.none": 1}, tenant="acme")
    await api.call("POST", f"/v1/subscriptions/{subscription}/disable")
    told = await explained(api, subscription)
    assert (told["matches"], len(told["reasons"])) == (False, 4)
    assert {one["where"]: one["holds"] for one in told["conditions"]} == {"data.amount.$gt": False, "data.none": None}
    subscription = await create(api, filter={"data.amount": 5})
    told = await explained(api, subscription)
    assert (told["matches"], told["reasons"]) == (True, [])
    assert told["conditions"] == [{"where": "data.amount", "holds": True}]
    async with store.transaction() as conn:
        key = parse_id(SUBSCRIPTION, subscription)
        await conn.execute("UPDATE subscriptions SET filter = $2, secrets = 'x' WHERE id = $1", key, {"n": 1})
    told = await explained(api, subscription)
    assert (told["matches"], told["request"]) == (False, None)
    assert "cannot be decrypted" in told["request_fault"]


async def test_the_request_is_shown_without_what_is_secret(api: ApiClient) -> None:
    subscription = await create(
        api,
        headers={"X-Key": "s3cret-value", "X-Region": {"value": "eu", "secret": False}},
        auth={"type": "bearer", "token": "t0ken-value"},
    )
    told = (await explained(api, subscription))["request"]
    headers = {name.lower(): value for name, value in told["headers"]}
    assert (told["method"], told["url"]) == ("POST", "https://example.com/hook?a=%62")
    assert (headers["host"], headers["content-type"]) == ("example.com", "application/json")
    assert (headers["x-key"], headers["x-region"]) == ("[redacted]", "eu")
    assert (headers["authorization"], headers["webhook-signature"]) == ("[redacted]", "[redacted]")
    assert headers["content-length"] == str(len(told["body"].encode()))
    assert told["body"].endswith(',"data":{"amount":5}}')
    hmac = {"scheme": "hmac", "algorithm": "sha256", "header": "X-Sig", "prefix": "sha256="}
    oauth = {"type": "oauth2", "token_url": "https://id.example/t", "client_id": "c", "client_secret": "s3cret-value"}
    subscription = await create(api, signature=hmac, auth=oauth, format="cloudevents_binary")
    headers = {name.lower(): value for name, value in (await explained(api, subscription))["request"]["headers"]}
    assert (headers["x-sig"], headers["authorization"], headers["ce-type"]) == (
        *("[redacted]", "[redacted]"),
        "order.created",
    )


async def test_where_nothing_would_be_sent_it_says_so(strict_api: ApiClient, store: Store) -> None:
    subscription = await create(strict_api)
    async with store.transaction() as conn:
        key = parse_id(SUBSCRIPTION, subscription)
        await conn.execute("UPDATE subscriptions SET url = 'ftp://example.com/' WHERE id = $1", key)
    told = await explained(strict_api, subscription)
    assert (told["matches"], told["request"]) == (True, None)
    assert told["request_fault"].startswith("it would not be sent: the URL")


async def test_what_it_is_asked_wrongly_is_told(api: ApiClient, store: Store) -> None:
    cases: list[tuple[Any, dict[str, Any], int, str]] = [
        (b"{", {}, 400, "invalid_json"),
        ({"type": "a"}, {}, 400, "validation_failed"),
        (EVENT, {"subscription_id": "x"}, 400, "validation_failed"),
        (EVENT, {"subscription_id": "sub_00000000000000000000000000"}, 404, "not_found"),
        (EVENT | {"data": "x" * 300_000}, {}, 413, "payload_too_large"),
    ]
    for body, query, status, code in cases:
        answer = await api.call("POST", PREVIEW, body, **query)
        assert (answer.status, answer.code) == (status, code), answer.raw


async def test_a_key_of_a_tenant_sees_only_its_own(api: ApiClient, store: Store) -> None:
    others, own = await create(api, tenant="other"), await create(api, tenant="acme")
    async with store.transaction() as conn:
        key, _ = await api_keys.create(conn, "acme's", tenant="acme")
    answer = await api.call("POST", PREVIEW, EVENT, key=key)
    assert [one["subscription_id"] for one in answer.body["data"]] == [own]
    assert (await api.call("POST", PREVIEW, EVENT, key=key, subscription_id=others)).code == "not_found"
    assert (await api.call("POST", PREVIEW, EVENT | {"tenant": "other"}, key=key)).code == "forbidden"
