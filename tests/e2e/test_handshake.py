"""The validation handshake of CloudEvents' web hooks: asked before anything is sent, and kept to."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.receivers import Behaviour, Receiver, Request
from tests.support.system import Api, DispatcherProcess, System
from tests.support.waiting import eventually

ORIGIN = "hooks.example.com"
AGREED = {"WebHook-Allowed-Origin": ORIGIN, "WebHook-Allowed-Rate": "*"}
ASKED: dict[str, Any] = {"format": "cloudevents_structured", "handshake": True}
SOON = {"delays_s": [1.0] * 20}


@pytest.fixture
def system(system: System) -> System:
    system._changes["webhook_origin"] = ORIGIN
    return system


async def publish(system: System, count: int = 1) -> None:
    async with system.publisher() as publisher:
        await asyncio.gather(*(publisher.publish("order.created", {"n": n}) for n in range(count)))


def methods(requests: list[Request]) -> list[str]:
    return [request.method for request in requests]


def most_within(times: list[float], window_s: float) -> int:
    return max(sum(start <= one < start + window_s for one in times) for start in times)


async def shown(api: Api, subscription: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = await api.call("GET", f"/v1/subscriptions/{subscription['id']}")
    return dict(answer["handshake"])


async def attempts(api: Api) -> list[dict[str, Any]]:
    (delivery,) = await api.all("/v1/deliveries")
    one = await api.call("GET", f"/v1/deliveries/{delivery['id']}")
    return sorted(one["attempts"], key=lambda attempt: int(attempt["number"]))


async def test_an_endpoint_is_asked_once_for_all_that_waits_and_named_to_with_every_delivery(
    system: System, api: Api, receiver: Receiver
) -> None:
    hold = asyncio.Event()
    url = receiver.behave("/hook", Behaviour(consent=AGREED, hold=hold))
    made = await api.subscribe(url, **ASKED)
    assert made["handshake"] == {"asked": True, "validated_at": None, "allowed_per_min": None}
    async with system.dispatcher():
        await publish(system, 5)
        (asked,) = await receiver.wait_for(1)

        async def all_wait() -> bool:
            return await system.statuses() == {"pending": 5}

        await eventually(all_wait)
        hold.set()
        await system.settled({"delivered": 5})
        after = await shown(api, made)
        assert after["validated_at"] is not None
        assert after["allowed_per_min"] is None
        await publish(system, 1)
        await system.settled({"delivered": 6})
    assert methods(receiver.requests) == ["OPTIONS"] + ["POST"] * 6
    assert asked.headers["webhook-request-origin"] == ORIGIN
    assert "webhook-request-rate" not in asked.headers
    assert asked.headers.keys().isdisjoint({"webhook-id", "webhook-signature", "content-type"})
    assert {request.headers["webhook-request-origin"] for request in receiver.requests[1:]} == {ORIGIN}


async def test_the_rate_that_it_allows_is_kept_by_the_whole_fleet(
    system: System, api: Api, receiver: Receiver, tmp_path: Path
) -> None:
    """From the first request on, although many wait for the answer, of which none spends an attempt."""
    consent = {"WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "600"}
    made = await api.subscribe(receiver.behave("/hook", Behaviour(consent=consent)), **ASKED)
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(DispatcherProcess(system, tmp_path / f"{number}.log"))
        await publish(system, 40)
        await system.settled({"delivered": 40}, deadline_s=60)
    assert (await shown(api, made))["allowed_per_min"] == 600
    posts = [request for request in receiver.requests if request.method == "POST"]
    assert len(posts) == 40
    assert await system.value("SELECT count(*) FROM attempts") == 40
    started = await system.fetch("SELECT extract(epoch FROM started_at)::float8 AS at FROM attempts ORDER BY 1")
    assert most_within([row["at"] for row in started], 1.0) <= 10 + 1


async def test_of_a_rate_limit_and_what_is_allowed_the_lower_one_holds(
    system: System, api: Api, receiver: Receiver
) -> None:
    consent = {"WebHook-Allowed-Origin": ORIGIN, "WebHook-Allowed-Rate": "300"}
    await api.subscribe(
        receiver.behave("/hook", Behaviour(consent=consent)),
        rate_limit={"requests_per_s": 500, "burst": 20},
        **ASKED,
    )
    async with system.dispatcher():
        await publish(system, 15)
        await system.settled({"delivered": 15}, deadline_s=30)
    asked, *posts = receiver.requests
    assert asked.headers["webhook-request-rate"] == "30000"
    assert methods(posts) == ["POST"] * 15
    assert most_within([request.at_s for request in posts], 1.0) <= 5 + 1


@pytest.mark.parametrize(
    ("consent", "reason"),
    [
        (None, "it answered 405"),
        ({}, "WebHook-Allowed-Origin is missing in its answer"),
        ({"WebHook-Allowed-Origin": "other.example"}, "WebHook-Allowed-Origin is 'other.example'"),
        ({"WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "0"}, "WebHook-Allowed-Rate is '0'"),
    ],
    ids=["no OPTIONS", "no word of it", "another origin", "no rate"],
)
async def test_who_does_not_agree_is_sent_nothing_until_it_does(
    system: System, api: Api, receiver: Receiver, consent: dict[str, str] | None, reason: str
) -> None:
    made = await api.subscribe(receiver.behave("/hook", Behaviour(consent=consent)), retry_policy=SOON, **ASKED)
    async with system.dispatcher():
        await publish(system)
        await receiver.wait_for(2)
        assert (await shown(api, made))["validated_at"] is None
        receiver.behave("/hook", Behaviour(consent=AGREED))
        await system.settled({"delivered": 1}, deadline_s=30)
    *asked, delivered = receiver.requests
    assert set(methods(asked)) == {"OPTIONS"}
    assert delivered.method == "POST"
    first, *_, last = await attempts(api)
    assert (first["outcome"], first["failure"], first["status_code"]) == ("retry", "handshake", None)
    assert first["reason"].startswith("the endpoint did not agree to take deliveries: ")
    assert reason in first["reason"]
    assert first["reason"].endswith("; nothing was sent")
    assert (last["outcome"], last["status_code"]) == ("delivered", 200)


async def test_who_cannot_be_asked_is_sent_nothing(system: System, api: Api, receiver: Receiver) -> None:
    url = receiver.behave("/hook", Behaviour(consent=AGREED))
    await api.subscribe(url, retry_policy={"delays_s": []}, **ASKED)
    await receiver.stop()
    async with system.dispatcher():
        await publish(system)
        await system.settled({"dead": 1})
    (attempt,) = await attempts(api)
    assert attempt["failure"] == "connect"
    assert "the handshake (OPTIONS) failed: no connection" in attempt["reason"]


async def test_a_new_url_is_asked_anew_and_so_is_one_that_was_not_asked_before(
    system: System, api: Api, receiver: Receiver
) -> None:
    for path in ("/old", "/new"):
        receiver.behave(path, Behaviour(consent=AGREED))
    made = await api.subscribe(receiver.url("/old"))
    path = f"/v1/subscriptions/{made['id']}"
    async with system.dispatcher():
        await publish(system)
        await system.settled({"delivered": 1})
        await api.call("PATCH", path, ASKED)
        await publish(system)
        await system.settled({"delivered": 2})
        changed = await api.call("PATCH", path, {"url": receiver.url("/new")})
        assert changed["handshake"]["validated_at"] is None
        await publish(system)
        await system.settled({"delivered": 3})
    assert methods(receiver.to("/old")) == ["POST", "OPTIONS", "POST"]
    assert methods(receiver.to("/new")) == ["OPTIONS", "POST"]
    assert "webhook-request-origin" not in receiver.to("/old")[0].headers


@pytest.mark.parametrize("moved", [False, True], ids=["paused", "moved"])
async def test_who_is_paused_or_moved_while_it_is_asked_is_sent_nothing(
    system: System, api: Api, receiver: Receiver, moved: bool
) -> None:
    """What was known before the question is not what a delivery begins by."""
    hold = asyncio.Event()
    made = await api.subscribe(receiver.behave("/hook", Behaviour(consent=AGREED, hold=hold)), **ASKED)
    receiver.behave("/new", Behaviour(consent=AGREED))
    path = f"/v1/subscriptions/{made['id']}"
    async with system.dispatcher():
        await publish(system)
        await receiver.wait_for(1)
        await api.call("PATCH", path, {"url": receiver.url("/new")} if moved else {"state": "paused"})
        hold.set()
        await system.settled({"delivered": 1} if moved else {"held": 1})
    assert methods(receiver.to("/hook")) == ["OPTIONS"]
    assert methods(receiver.to("/new")) == (["OPTIONS", "POST"] if moved else [])
    assert await system.value("SELECT count(*) FROM attempts") == int(moved)


async def test_a_secret_that_is_rotated_meanwhile_signs_what_waited(
    system: System, api: Api, receiver: Receiver
) -> None:
    hold = asyncio.Event()
    made = await api.subscribe(receiver.behave("/hook", Behaviour(consent=AGREED, hold=hold)), **ASKED)
    async with system.dispatcher():
        await publish(system)
        await receiver.wait_for(1)
        rotated = await api.call("POST", f"/v1/subscriptions/{made['id']}/rotate-secret", {"grace_s": 0})
        receiver.behave("/hook", Behaviour(consent=AGREED, secret=rotated["secret"]))
        hold.set()
        await system.settled({"delivered": 1})
    assert [(request.method, request.verified) for request in receiver.requests] == [("OPTIONS", None), ("POST", True)]
