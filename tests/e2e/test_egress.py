"""Egress through a subscription and a real delivery, not only through the checking function."""

import pytest

from tests.support.receivers import Behaviour, Receiver
from tests.support.system import Api, System

ONCE: dict[str, list[float]] = {"delays_s": []}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_forbidden_address_is_not_reached_and_the_attempt_says_why(
    system: System, api: Api, receiver: Receiver, host: str
) -> None:
    """The API that took the subscription allowed loopback; this dispatcher does not."""
    await api.subscribe(f"http://{host}:{receiver.port}/hook", retry_policy=ONCE)
    async with system.dispatcher(egress_allow=""), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"dead": 1})
    assert not receiver.requests
    (delivery,) = await api.all("/v1/deliveries")
    (attempt,) = (await api.call("GET", f"/v1/deliveries/{delivery['id']}"))["attempts"]
    assert attempt["failure"] == "forbidden_address"
    assert "HOOKHARE_EGRESS_ALLOW" in attempt["reason"]


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "http://[::ffff:10.0.0.1]/", "http://10.1:80/"])
async def test_a_forbidden_literal_is_refused_when_the_subscription_is_made(system: System, api: Api, url: str) -> None:
    answer = await api.call("POST", "/v1/subscriptions", {"url": url, "event_types": ["#"]}, expect=400)
    assert answer["error"]["details"][0]["field"] == "url"


async def test_a_redirect_is_a_failure_and_is_not_followed(system: System, api: Api, receiver: Receiver) -> None:
    target = receiver.url("/target")
    await api.subscribe(
        receiver.behave("/hook", Behaviour(status=302, headers={"Location": target})), retry_policy=ONCE
    )
    async with system.dispatcher(), system.publisher() as publisher:
        await publisher.publish("order.created", {"n": 1})
        await system.settled({"dead": 1})
    assert [request.path for request in receiver.requests] == ["/hook"]
