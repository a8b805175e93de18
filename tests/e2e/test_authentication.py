"""Destination authentication, from `POST /v1/subscriptions` to the attempt that is recorded."""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.attempts import ONCE, attempts, try_out
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.token_server import TokenServer
from tests.support.waiting import eventually

BASIC = "Basic " + base64.b64encode("m\u00fcller:s3cret:canary".encode()).decode()
STATIC: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    (
        {"type": "basic", "username": "m\u00fcller", "password": "s3cret:canary"},
        {"type": "basic", "username": "m\u00fcller", "password": "[redacted]"},
        "authorization",
        BASIC,
    ),
    (
        {"type": "bearer", "token": "canary-7"},
        {"type": "bearer", "token": "[redacted]"},
        "authorization",
        "Bearer canary-7",
    ),
    (
        {"type": "api_key", "header": "X-Api-Key", "value": "a canary"},
        {"type": "api_key", "header": "X-Api-Key", "value": "[redacted]"},
        "x-api-key",
        "a canary",
    ),
]


def only(header: str, *values: str) -> Behaviour:
    """Admits requests whose header has one of these values."""
    return Behaviour(admits=lambda headers: headers.get(header) in values)


@pytest.mark.parametrize(("auth", "shown", "header", "value"), STATIC, ids=["basic", "bearer", "api_key"])
async def test_a_header_lets_a_delivery_in_and_its_secret_is_never_shown(
    system: System,
    api: Api,
    receiver: Receiver,
    auth: dict[str, Any],
    shown: dict[str, Any],
    header: str,
    value: str,
) -> None:
    created = await api.subscribe(receiver.behave("/hook", only(header, value)), auth=auth, headers={"X-Own": "1"})
    async with system.dispatcher(), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"delivered": 1})
    (attempt,) = await attempts(api)
    assert (attempt["status_code"], attempt["number"]) == (200, 1)
    (request,) = receiver.requests
    assert (request.headers[header], request.headers["x-own"]) == (value, "1")
    assert created["auth"] == shown
    assert (await api.call("GET", f"/v1/subscriptions/{created['id']}"))["auth"] == shown
    assert "canary" not in str(await api.all("/v1/subscriptions"))


async def test_the_test_call_tells_that_credentials_are_wrong_and_that_new_ones_are_right(
    system: System, api: Api, receiver: Receiver
) -> None:
    url = receiver.behave("/hook", only("authorization", "Bearer right"))
    subscription = await api.subscribe(url, retry_policy=ONCE, auth={"type": "bearer", "token": "wrong"})
    path = f"/v1/subscriptions/{subscription['id']}"
    async with system.dispatcher():
        wrong = await try_out(api, subscription)
        assert (wrong["status_code"], wrong["outcome"]) == (401, "dead")
        await api.call("PATCH", path, {"auth": {"type": "bearer", "token": "right"}})
        assert (await try_out(api, subscription))["status_code"] == 200
        assert (await api.call("PATCH", path, {"auth": None}))["auth"] is None
        assert (await try_out(api, subscription))["status_code"] == 401
    assert "authorization" not in receiver.requests[-1].headers


@pytest.mark.parametrize("client_auth", ["basic", "post"])
async def test_a_token_of_oauth_2_lets_a_delivery_in(
    system: System, api: Api, receiver: Receiver, client_auth: str
) -> None:
    client, secret = "client 1+%:", "s&=+ %\u007e:"
    async with TokenServer({client: {secret}}) as tokens, system.dispatcher(), system.publisher() as publisher:
        auth = tokens.auth(client, secret, client_auth=client_auth, scope="hooks:write a", audience="https://api.test/")
        created = await api.subscribe(receiver.behave("/hook", Behaviour(admits=tokens.admits)), auth=auth)
        assert created["auth"] == auth | {"client_secret": "[redacted]"}
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"delivered": 1})
        (fetch,) = tokens.fetches
        assert (fetch.client_auth, fetch.client_id) == (client_auth, client)
        assert (fetch.form["grant_type"], fetch.form["scope"]) == ("client_credentials", "hooks:write a")
        assert fetch.form["audience"] == "https://api.test/"
        assert ("client_secret" in fetch.form) is (client_auth == "post")
    (attempt,) = await attempts(api)
    assert attempt["status_code"] == 200


@pytest.mark.parametrize("kind", ["bearer", "oauth2"])
async def test_a_handshake_is_let_in_by_the_same_credentials(
    system: System, api: Api, receiver: Receiver, kind: str
) -> None:
    async with TokenServer({"c": {"s"}}) as tokens, system.dispatcher():

        def admits(headers: Mapping[str, str]) -> bool:
            return tokens.admits(headers) or headers.get("authorization") == "Bearer static"

        url = receiver.behave("/hook", Behaviour(admits=admits, consent={"WebHook-Allowed-Origin": "*"}))
        auth = tokens.auth("c", "s") if kind == "oauth2" else {"type": "bearer", "token": "static"}
        asked = {"format": "cloudevents_structured", "handshake": True, "retry_policy": ONCE}
        attempt = await try_out(api, await api.subscribe(url, auth=auth, **asked))
        assert len(tokens.fetches) == (1 if kind == "oauth2" else 0)
    assert attempt["status_code"] == 200, attempt["reason"]
    assert [(request.method, request.status) for request in receiver.requests] == [("OPTIONS", 200), ("POST", 200)]


async def test_a_hundred_deliveries_at_once_fetch_one_token(system: System, api: Api, receiver: Receiver) -> None:
    async with TokenServer({"c": {"s"}}, hold=asyncio.Event()) as tokens:
        await api.subscribe(receiver.behave("/hook", Behaviour(admits=tokens.admits)), auth=tokens.auth("c", "s"))
        async with system.dispatcher(endpoint_max_in_flight=200), system.publisher() as publisher:
            await asyncio.gather(*(publisher.publish("order.created", {"n": n}) for n in range(100)))

            async def all_in_hand() -> bool:
                claimed = await system.value("SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL")
                return tokens.waiting > 0 and claimed == 100

            await eventually(all_in_hand, system.statuses)
            assert tokens.hold is not None
            tokens.hold.set()
            await system.settled({"delivered": 100})
        assert len(tokens.fetches) == 1
    assert len(receiver.requests) == 100
    assert {request.status for request in receiver.requests} == {200}


async def test_a_401_refreshes_the_token_once_within_the_attempt(system: System, api: Api, receiver: Receiver) -> None:
    async with TokenServer({"c": {"s"}}) as tokens, system.dispatcher(), system.publisher() as publisher:
        await api.subscribe(receiver.behave("/hook", Behaviour(admits=tokens.admits)), auth=tokens.auth("c", "s"))
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"delivered": 1})
        tokens.revoke_all()
        await publisher.publish("order.created", {"n": 2})
        await system.settled({"delivered": 2})
        assert len(tokens.fetches) == 2
    assert [request.status for request in receiver.requests] == [200, 401, 200]
    assert receiver.requests[1].webhook_id == receiver.requests[2].webhook_id
    assert [attempt["status_code"] for attempt in await attempts(api)] == [200, 200]


async def test_an_endpoint_that_takes_no_token_is_asked_twice_in_an_attempt(
    system: System, api: Api, receiver: Receiver
) -> None:
    async with TokenServer({"c": {"s"}}) as tokens, system.dispatcher():
        url = receiver.behave("/hook", Behaviour(status=401))
        attempt = await try_out(api, await api.subscribe(url, auth=tokens.auth("c", "s"), retry_policy=ONCE))
        assert len(tokens.fetches) == 2
    assert attempt["status_code"] == 401
    assert [request.status for request in receiver.requests] == [401, 401]


async def test_a_token_server_that_refuses_is_told_and_nothing_is_sent(
    system: System, api: Api, receiver: Receiver
) -> None:
    async with TokenServer({"c": {"s"}}) as tokens, system.dispatcher():
        subscription = await api.subscribe(
            receiver.url("/hook"), auth=tokens.auth("c", "wr0ng"), retry_policy={"delays_s": [60]}
        )
        attempt = await try_out(api, subscription)
        assert (attempt["failure"], attempt["status_code"], attempt["outcome"]) == ("auth", None, "retry")
        assert attempt["reason"] == f"the token server at 127.0.0.1:{tokens.port} answered 401: invalid_client"
        await system.settled({"retrying": 1})
        tokens.clients["c"] = {"wr0ng"}  # mended there
        assert (await try_out(api, subscription))["status_code"] == 200
    assert len(receiver.requests) == 1


async def test_a_refusal_after_a_401_is_told_with_it(system: System, api: Api, receiver: Receiver) -> None:
    async with TokenServer({"c": {"s"}}) as tokens, system.dispatcher():
        url = receiver.behave("/hook", Behaviour(admits=tokens.admits))
        subscription = await api.subscribe(url, auth=tokens.auth("c", "s"), retry_policy=ONCE)
        assert (await try_out(api, subscription))["status_code"] == 200
        tokens.revoke_all()
        tokens.clients.clear()
        attempt = await try_out(api, subscription)
    assert attempt["failure"] == "auth"
    assert "the endpoint answered 401 to its token, and the token server at " in attempt["reason"]
    assert attempt["reason"].endswith("answered 401: invalid_client")


async def test_a_token_server_that_hangs_ends_the_attempt_at_its_deadline(
    system: System, api: Api, receiver: Receiver
) -> None:
    async with TokenServer({"c": {"s"}}, hold=asyncio.Event()) as tokens, system.dispatcher():
        subscription = await api.subscribe(
            receiver.url("/hook"), auth=tokens.auth("c", "s"), timeout_s=1, retry_policy=ONCE
        )
        attempt = await try_out(api, subscription)
    assert attempt["failure"] == "auth"
    assert f"the token server at 127.0.0.1:{tokens.port} gave no token" in attempt["reason"]
    assert "within 1 s" in attempt["reason"]
    assert attempt["duration_ms"] >= 1000
    assert not receiver.requests


async def test_a_refresh_has_what_is_left_of_the_attempts_time(system: System, api: Api, receiver: Receiver) -> None:
    async with TokenServer({"c": {"s"}}) as tokens, system.dispatcher():
        url = receiver.behave("/hook", Behaviour(admits=tokens.admits))
        subscription = await api.subscribe(url, auth=tokens.auth("c", "s"), timeout_s=1, retry_policy=ONCE)
        assert (await try_out(api, subscription))["status_code"] == 200
        tokens.revoke_all()
        tokens.hold = asyncio.Event()
        attempt = await try_out(api, subscription)
        tokens.hold.set()
    assert attempt["failure"] == "auth"
    assert "the endpoint answered 401 to its token, and the token server at " in attempt["reason"]
    assert 1000 <= attempt["duration_ms"] < 10_000
    assert [request.status for request in receiver.requests] == [200, 401]


async def test_a_dispatcher_that_stops_while_a_token_is_awaited_spends_no_attempt(
    system: System, api: Api, receiver: Receiver
) -> None:
    async with TokenServer({"c": {"s"}}, hold=asyncio.Event()) as tokens, system.publisher() as publisher:
        await api.subscribe(receiver.url("/hook"), auth=tokens.auth("c", "s"))
        async with system.dispatcher(drain_s=0.1):
            await publisher.publish("order.created", {"n": 1})

            async def awaited() -> bool:
                return tokens.waiting == 1

            await eventually(awaited)
        assert await system.statuses() == {"held": 1}
    assert not await attempts(api)
    assert not receiver.requests


async def test_a_token_url_that_leads_where_the_guard_forbids_is_not_reached(
    system: System, api: Api, receiver: Receiver
) -> None:
    """The API that took the subscription allowed all of loopback; this dispatcher allows the endpoint alone."""
    async with TokenServer({"c": {"s"}}, host="127.0.0.2") as tokens, system.dispatcher(egress_allow="127.0.0.1/32"):
        attempt = await try_out(
            api, await api.subscribe(receiver.url("/hook"), auth=tokens.auth("c", "s"), retry_policy=ONCE)
        )
        assert not tokens.fetches
    assert attempt["failure"] == "auth"
    assert "127.0.0.2" in attempt["reason"]
    assert "HOOKHARE_EGRESS_ALLOW" in attempt["reason"]
    assert not receiver.requests


async def test_subscriptions_share_a_token_only_if_they_have_the_same_secret(
    system: System, api: Api, receiver: Receiver
) -> None:
    async with TokenServer({"c": {"one", "two"}}) as tokens, system.dispatcher(), system.publisher() as publisher:
        for path, secret in (("/a", "one"), ("/b", "two"), ("/c", "one")):
            url = receiver.behave(path, Behaviour(admits=tokens.admits))
            await api.subscribe(url, auth=tokens.auth("c", secret, client_auth="post"))
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"delivered": 3})
        used = {path: tokens.fetch_of(receiver.to(path)[0].headers) for path in ("/a", "/b", "/c")}
        assert len(tokens.fetches) == 2
    secrets = {path: fetch.form["client_secret"] for path, fetch in used.items()}
    assert secrets == {"/a": "one", "/b": "two", "/c": "one"}
    assert used["/a"] is used["/c"]


async def test_credentials_are_replaced_under_load_without_a_failed_attempt(
    system: System, api: Api, receiver: Receiver
) -> None:
    """The token server knows both secrets while it is rotated; the endpoint asks it. Then the kind is changed too."""
    async with TokenServer({"c": {"old", "new"}}) as tokens, system.dispatcher(), system.publisher() as publisher:

        def admits(headers: Mapping[str, str]) -> bool:
            return tokens.admits(headers) or headers.get("authorization") == "Bearer static"

        url = receiver.behave("/hook", Behaviour(admits=admits, delay_s=0.01))
        subscription = await api.subscribe(url, auth=tokens.auth("c", "old", client_auth="post"), retry_policy=ONCE)
        path = f"/v1/subscriptions/{subscription['id']}"
        published = [asyncio.create_task(publisher.publish("order.created", {"n": n})) for n in range(150)]
        await receiver.wait_for(20)
        await api.call("PATCH", path, {"auth": tokens.auth("c", "new", client_auth="post")})
        await receiver.wait_for(70)
        await api.call("PATCH", path, {"auth": {"type": "bearer", "token": "static"}})
        await asyncio.gather(*published)
        for n in range(10):
            await publisher.publish("order.late", {"n": n})
        await system.settled({"delivered": 160})
        assert {fetch.form["client_secret"] for fetch in tokens.fetches} <= {"old", "new"}
    assert {attempt["status_code"] for attempt in await attempts(api)} == {200}
    assert len(receiver.requests) == 160
    late = [one for one in receiver.requests if b"order.late" in one.body]
    assert [one.headers["authorization"] for one in late] == ["Bearer static"] * 10
