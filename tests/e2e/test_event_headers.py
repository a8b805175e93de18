"""An event's headers arrive with each of its requests, beneath what the subscription sets itself."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from infra.broker.base import Outgoing, ToEvents
from schemas.messages import Message
from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System
from tests.support.waiting import eventually

SOON = {"delays_s": [0]}
HEADERS = {"X-Region": "eu", "x-KEY": "the event's", "accept": "text/plain"}
BINARY = {
    "cloudEvents:specversion": "1.0",
    "cloudEvents:type": "order.created",
    "cloudEvents:hookhareheaders": orjson.dumps(HEADERS).decode(),
}
STRUCTURED = {
    "specversion": "1.0",
    "type": "order.created",
    "data": 1,
    "hookhareheaders": orjson.dumps(HEADERS).decode(),
}
PLAIN = {"type": "order.created", "data": 1, "headers": HEADERS}
MESSAGES = {
    "binary": Message(b"1", headers=dict(BINARY)),
    "structured": Message(orjson.dumps(STRUCTURED), content_type="application/cloudevents+json"),
    "plain": Message(orjson.dumps(PLAIN)),
}


def as_sent(pairs: Sequence[tuple[str, str]], name: str) -> list[str]:
    return [value for one, value in pairs if one.lower() == name.lower()]


async def test_first_attempt_retry_and_replay_carry_them_and_the_subscriptions_own_win(
    system: System, api: Api, receiver: Receiver
) -> None:
    url = receiver.behave("/hook", Behaviour(fail_first=1))
    await api.subscribe(
        url, retry_policy=SOON, headers={"X-Key": "own", "Accept": {"value": "application/json", "secret": False}}
    )
    async with system.dispatcher(), system.publisher() as publisher:
        published = await publisher.publish("order.created", {"n": 1}, headers=HEADERS)
        await system.settled({"delivered": 1})
        (delivery,) = await api.all("/v1/deliveries")
        await api.call("POST", f"/v1/deliveries/{delivery['id']}/replay")
        requests = await receiver.wait_for(3)
        await system.settled({"delivered": 1})
    assert [request.status for request in requests] == [503, 200, 200]
    for request in requests:
        assert request.headers["x-region"] == "eu"
        assert as_sent(request.all_headers, "X-Key") == ["own"]
        assert as_sent(request.all_headers, "Accept") == ["application/json"]
        assert request.webhook_id == published.id
    event = await api.call("GET", f"/v1/events/{published.id}")
    assert event["headers"] == HEADERS
    (listed,) = await api.all("/v1/events")
    assert listed["headers"] == HEADERS


async def test_what_waited_in_the_backlog_carries_them(system: System, api: Api, receiver: Receiver) -> None:
    subscription = await api.subscribe(receiver.url("/hook"))
    await api.call("POST", f"/v1/subscriptions/{subscription['id']}/pause")
    async with system.dispatcher():
        await api.call("POST", "/v1/events", {"type": "order.created", "data": 1, "headers": HEADERS})
        await api.call("POST", "/v1/events", {"type": "order.created", "data": 2})
        await system.settled({"held": 2})
        await api.call("POST", f"/v1/subscriptions/{subscription['id']}/resume")
        requests = await receiver.wait_for(2)
    carried = {orjson.loads(request.body)["data"]: request.headers.get("x-region") for request in requests}
    assert carried == {1: "eu", 2: None}


@pytest.mark.parametrize("mode", MESSAGES)
async def test_any_client_brings_them_in_any_mode(system: System, api: Api, receiver: Receiver, mode: str) -> None:
    await api.subscribe(receiver.url("/hook"))
    async with system.dispatcher(), system.broker() as broker:
        await broker.publish(Outgoing(ToEvents("order.created"), MESSAGES[mode]), timeout_s=5)
        (request,) = await receiver.wait_for(1)
    assert (request.headers["x-region"], request.headers["x-key"]) == ("eu", "the event's")
    assert as_sent(request.all_headers, "Accept") == ["text/plain"]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (Message(b"1", headers={**BINARY, "cloudEvents:hookhareheaders": '{"Host": "x"}'}), "hookhareheaders"),
        (Message(orjson.dumps({**PLAIN, "headers": {"Authorization": "x"}})), "headers"),
    ],
)
async def test_those_that_no_request_may_have_make_a_dead_letter_that_names_them(
    system: System, api: Api, message: Message, field: str
) -> None:
    letters: list[dict[str, Any]] = []
    async with system.dispatcher(), system.broker() as broker:
        await broker.publish(Outgoing(ToEvents("order.created"), message), timeout_s=5)

        async def kept() -> bool:
            letters[:] = await api.all("/v1/dead-letters")
            return bool(letters)

        await eventually(kept)
    (letter,) = letters
    assert letter["kind"] == "unreadable"
    assert letter["reason"].startswith(f"{field}: must not set "), letter["reason"]
    assert not await system.value("SELECT count(*) FROM events")
